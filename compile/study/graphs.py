"""`python -m compile.study.graphs`: a recipe's published files beside plain TorchScript graphs of its unpruned model.

All take turns in one run, at the lengths of the recipe's test texts, each at the batch width that suits it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from compile.checkpoint import load
from compile.cli import guarded
from compile.graph.forms import export_form
from compile.graph.quantization import quantize_int8
from compile.graph.sessions import open_session
from compile.live import watched
from compile.measure.cpu import cheapest_width_cpu_seconds, this_cpu
from compile.pipeline import compile_recipe, trained_teacher
from compile.recipe import Recipe, load_recipe
from compile.report.markdown import table_lines
from compile.runner import Reporter
from compile.study.tables import PLAIN, beside_torchscript
from models.store import Store, write_atomic

_TEXTS, _REPEATS = 512, 5
_RECIPES = Path(__file__).parents[2] / "models" / "recipes"


def main(
    data: Annotated[
        Path, typer.Argument(help="Folder that holds text/SET/train.parquet, …", envvar="JOULESERVE_TEST_DATA")
    ],
    name: Annotated[str, typer.Option("--recipe", help="One of the recipes that come with the project.")] = "sst2",
    folder: Annotated[Path, typer.Option(help="The study's store and cache.")] = Path("var/study"),
    results: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("var/study/results"),
) -> None:
    """Compile the recipe unless it was, time its files and the plain graphs in turns, keep and print the figures."""
    console = Console(highlight=False, soft_wrap=True)
    recipe = load_recipe(_RECIPES / f"{name}.yaml", {"data": str(data / "text" / name)})
    with watched(console) as reporter:
        found = measured(recipe, folder, reporter)
    path = results / f"graphs-{name}.json"
    write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())
    console.print("\n".join(table_lines(beside_torchscript(found))), markup=False)
    console.print(f"kept as {path}")


def measured(recipe: Recipe, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """CPU-seconds per 1,000 test texts of each published file, and of the unpruned model's TorchScript graphs."""
    version = compile_recipe(recipe, Store(folder / "store"), folder / "work", reporter).version
    teacher, context = trained_teacher(recipe, folder / "work", reporter)
    files = {one.name: version.file(one.model) for one in version.manifest.variants}
    cpu = this_cpu()
    with tempfile.TemporaryDirectory() as scratch:
        fp32, int8 = (Path(scratch) / f"{name}.onnx" for name in PLAIN)
        export_form(load(teacher.path), "torchscript", context.dataset.pair, recipe.export.opset, fp32)
        quantize_int8(fp32, int8, [], cpu.reduce_range, embeddings=False)
        plain = dict(zip(PLAIN, (fp32, int8), strict=True))
        sessions = {name: open_session(path) for name, path in (plain | files).items()}
        texts = context.test.every(-(-len(context.test) // _TEXTS))
        spent = cheapest_width_cpu_seconds(sessions, texts, context.pad, context.batch_rows, _REPEATS)
    return {
        "family": recipe.family,
        "command": f"python -m compile.study.graphs --recipe {recipe.family}",
        "cpu": cpu.model,
        "texts": len(texts),
        "precisions": PLAIN | {one.name: one.precision for one in version.manifest.variants},
        "cpu_seconds_per_1k": spent,
    }


if __name__ == "__main__":
    guarded("compile.study.graphs", lambda: typer.run(main))
