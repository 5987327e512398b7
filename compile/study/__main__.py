"""`make bench-compile`: the project's recipes and the study, then their tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from compile.cli import guarded
from compile.errors import FloorError, GateFailed, InputError
from compile.live import watched
from compile.pipeline import compile_recipe
from compile.recipe import load_recipe
from compile.report import figures
from compile.report.markdown import table_lines
from compile.study.plan import FAMILIES, SETS, Scale, cells
from compile.study.run import read_results, run_cells
from compile.study.tables import beside_published, every_variant, units_against_layers
from compile.study.targets import against_targets
from models.store import Store, write_atomic

DATA = "JOULESERVE_TEST_DATA"
RECIPES = ("sst2", "banking77")
_HERE = Path(__file__).parents[2] / "models"


def main(
    data: Annotated[
        Path, typer.Argument(help="Folder that holds text/SET/train.parquet, …", envvar="JOULESERVE_TEST_DATA")
    ],
    quick: Annotated[bool, typer.Option(help="One family on a part of one set: about a quarter of an hour.")] = False,
    family: Annotated[list[str] | None, typer.Option(help=f"Only these of {', '.join(FAMILIES)}.")] = None,
    dataset: Annotated[list[str] | None, typer.Option("--set", help=f"Only these of {', '.join(SETS)}.")] = None,
    recipes: Annotated[bool, typer.Option(help="Compile the project's own recipes first.")] = True,
    whole: Annotated[bool | None, typer.Option(help="Whole sets; the default with a GPU.")] = None,
    tables: Annotated[
        bool, typer.Option("--tables", help="Run nothing: print the tables of the results kept.")
    ] = False,
    folder: Annotated[Path, typer.Option(help="The study's store and cache.")] = Path("var/study"),
    results: Annotated[Path, typer.Option(help="Where each cell's figures go.")] = Path("var/study/results"),
) -> None:
    """Run what is not done yet (again the same command after a kill), print the tables."""
    console = Console(highlight=False, soft_wrap=True)
    scale: Scale = "quick" if quick else "whole" if (_has_gpu() if whole is None else whole) else "small"
    if not tables:
        texts = data / "text"
        if not texts.is_dir():
            raise InputError("data", f"{texts} is no folder", "give the folder that holds text/SET/train.parquet")
        with watched(console) as reporter:
            for name in RECIPES if recipes and not quick else ():
                console.print(f"recipe {name}")
                recipe = load_recipe(_HERE / "recipes" / f"{name}.yaml", {"data": str(texts / name)})
                try:
                    made = compile_recipe(recipe, Store(folder / "store"), folder / "work", reporter)
                except (FloorError, GateFailed) as error:
                    console.print(f"  no result: {error}", markup=False)
                    continue
                _keep(results / f"{name}.json", figures(made.version.manifest))
            planned = [
                cell
                for cell in cells(scale)
                if cell.family in (family or FAMILIES) and cell.dataset in (dataset or SETS)
            ]
            run_cells(planned, texts, folder, results, reporter, console.print)
    print_tables(results, console, scale)


def print_tables(results: Path, console: Console, scale: Scale) -> None:
    """Print the tables of what a folder of results holds, in the plan's order; cells not run yet are named."""
    found = read_results(results)
    planned = cells(scale)
    there = [found[cell.name] for cell in planned if cell.name in found]
    own = [json.loads(path.read_text()) for name in RECIPES if (path := results / f"{name}.json").is_file()]
    shares = "Percent of the fp32 teacher: accuracy/size/time (emissions are as time where joules are estimated)"
    for title, table in (
        ("What the project's own recipes are asked, judged on the test files", against_targets(own)),
        (shares, beside_published(there)),
        ("Every variant", every_variant(there)),
        ("Half the heads and feed-forward units, against removing layers", units_against_layers(there)),
    ):
        console.print(f"\n{title}\n", markup=False)
        console.print("\n".join(table_lines(table)), markup=False)
    missing = [cell.name for cell in planned if cell.name not in found]
    if missing:
        console.print(f"\nnot run yet: {', '.join(missing)}")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _keep(path: Path, made: object) -> None:
    write_atomic(path, (json.dumps(made, indent=1) + "\n").encode())


if __name__ == "__main__":
    guarded("compile.study", lambda: typer.run(main))
