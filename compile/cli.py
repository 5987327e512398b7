"""`jouleserve-compile`: compile recipes, print reports.

Exit codes: 0 done; 2 a recipe, its data, its base or a path cannot be used, a package is missing, or no candidate meets
a floor (nothing is published); 1 anything else that failed.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
import time
from collections.abc import Callable
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from compile.data.dataset import Split
from compile.errors import CompileError, InputError
from compile.live import watched
from compile.pipeline import Result, compile_recipe, report_path
from compile.recipe import load_recipe
from compile.report import PAGE, figures, main_table, write_report
from compile.shifting import LOG, Shift, open_grid, parse_by
from models.manifest import Manifest
from models.store import Store, StoreError, write_atomic

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Compile models for JouleServe.")
_OURS = ("compile", "energy", "models")
StoreOption = Annotated[Path, typer.Option("--store", envvar="JOULESERVE_STORE", help="Folder of published families.")]
WorkOption = Annotated[Path, typer.Option("--work", envvar="JOULESERVE_WORK", help="Folder of cached passes.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jouleserve-compile {version_of('jouleserve')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the release and exit.")
    ] = False,
) -> None:
    """What every command has in common."""


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, e.g. models/recipes/support-intents.yaml.")],
    data: Annotated[str | None, typer.Option(help="Use this data instead of the recipe's.")] = None,
    base: Annotated[str | None, typer.Option(help="Use these base weights instead of the recipe's.")] = None,
    family: Annotated[str | None, typer.Option(help="Publish under this family name.")] = None,
    store: StoreOption = Path("var/store"),
    work: WorkOption = Path("var/work"),
    by: Annotated[
        str | None, typer.Option(help="Run in the cleanest hours before this time (ISO 8601, or +12h); needs --grid.")
    ] = None,
    grid: Annotated[
        str | None, typer.Option(help="uk, electricity_maps:ZONE, or a CSV of UTC times and gCO2e/kWh, replayed.")
    ] = None,
    grid_secret_file: Annotated[Path | None, typer.Option(help="File that holds the provider's token.")] = None,
    grid_start: Annotated[str | None, typer.Option(help="Where the replay begins (its first row).")] = None,
    grid_speed: Annotated[float, typer.Option(min=0.001, help="Replayed seconds in a real one.")] = 1.0,
) -> None:
    """Compile a recipe and publish it; go on where an earlier run stopped; say so if it is published already."""
    began = time.monotonic()
    given = {"data": data, "base": base, "family": family}
    console = Console(highlight=False)
    loaded = load_recipe(recipe, {name: value for name, value in given.items() if value is not None})
    origin = loaded.base if isinstance(loaded.base, str) else f"scratch:{loaded.base.scratch}"
    console.print(f"compiling {loaded.family} (data {escape(loaded.data.source)}, base {escape(origin)})")
    if (by is None) != (grid is None):
        raise InputError("--by", "goes with --grid, and one of them is missing", "give both, or neither")
    with watched(console) as reporter:
        shift = None
        if by is not None and grid is not None:
            ladder = open_grid(grid, grid_start, grid_speed, grid_secret_file, work / "grid-cache.json")
            shift = Shift(ladder, parse_by(by, ladder.now()), reporter, _say(console), work / LOG, speed=grid_speed)
        try:
            result = compile_recipe(loaded, Store(store), work, reporter, shift)
        finally:
            if shift is not None:
                shift.close()
    if shift is not None:
        _say(console)(shift.conclude())
    _conclude(console, result, store, time.monotonic() - began)


@app.command()
def report(
    family: Annotated[str | None, typer.Option(help="Family name; every family of the store if not given.")] = None,
    version: Annotated[str | None, typer.Option(help="Version name; the one in force if not given.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write FAMILY/VERSION/report.html and .md to; reports/ by the store.")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
    store: StoreOption = Path("var/store"),
) -> None:
    """Write the report of what is published, one HTML page and Markdown a family; print its main table."""
    opened = Store(store)
    if family is None and (version is not None or json_path is not None):
        raise InputError("family", "a version or a file of figures is of one family", "give --family")
    families = [family] if family is not None else opened.families()
    if not families:
        raise StoreError(f"{opened.root}: nothing is published; compile a family with `jouleserve-compile run RECIPE`")
    for name in families:
        found = opened.open(name, version)
        path = report_path(opened, found) if out is None else out / name / found.name / "report.md"
        page = write_report(found, path).with_name(PAGE)
        if json_path is not None:
            write_atomic(json_path, (json.dumps(figures(found.manifest), indent=1) + "\n").encode())
        sys.stdout.write(f"{name} {found.name}\n\n{main_table(found.manifest)}\nwritten to {page} and {path}\n\n")


@app.command()
def data(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    rows: Annotated[int | None, typer.Option(help="More test texts than usual; built-in data only.", min=1)] = None,
    out: Annotated[Path, typer.Option(help="CSV to write: text, label (its name), and text_b for pairs.")] = Path(
        "var/texts.csv"
    ),
) -> None:
    """Write a split of a recipe's data as CSV, for load tests and for a look at it."""
    from compile.data.loader import BUILTIN, SPLITS, builtin, load_dataset

    loaded = load_recipe(recipe, {})
    if rows is not None and loaded.data.source != BUILTIN:
        raise InputError("rows", f"only the built-in {BUILTIN} can be made longer", "leave rows out")
    dataset = builtin(loaded.seed, rows) if rows is not None else load_dataset(loaded.data, loaded.seed)
    if split not in SPLITS:
        raise InputError("split", f"there is no '{split}'", f"give one of {', '.join(SPLITS)}")
    chosen: Split = getattr(dataset, split)
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["text", "label", *(["text_b"] if chosen.texts_b is not None else [])])
    seconds = chosen.texts_b or [None] * len(chosen)
    for text, second, label in zip(chosen.texts, seconds, chosen.labels, strict=True):
        writer.writerow([text, dataset.labels[int(label)], *([second] if second is not None else [])])
    write_atomic(out, lines.getvalue().encode())
    typer.echo(f"{len(chosen)} texts of {dataset.name} ({split}): {out}")


def _say(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, soft_wrap=True, markup=False)


def _conclude(console: Console, result: Result, store: Path, seconds: float) -> None:
    version = result.version
    if result.found:
        console.print(f"{version.family} is in the store already as {version.name}: nothing to do ({seconds:.1f} s)")
    else:
        console.print(f"compiled {version.family} in {seconds:.0f} s, published as {version.name}")
    accuracy = version.manifest.accuracy_name
    for point in version.manifest.points:
        joules = "–" if point.joules_per_1k is None else f"{point.joules_per_1k:.2f} J"
        console.print(
            f"  {point.name:<8} {accuracy} {point.accuracy:.4f} ({point.relative_accuracy:.1%} of the teacher), "
            f"{point.cpu_seconds_per_1k:.3f} CPU-s and {joules} per 1,000 texts",
            soft_wrap=True,
        )
    for name, reason in result.failures.items():
        console.print(f"  left out: {name}: {reason}", style="yellow", soft_wrap=True, markup=False)
    console.print(_about_joules(version.manifest), soft_wrap=True, markup=False)
    console.print(f"result: {version.path}", soft_wrap=True, markup=False)
    if result.report_failed is None:
        console.print(f"report: {result.report}", soft_wrap=True, markup=False)
    else:
        problem = f"report: not written ({result.report_failed}); `jouleserve-compile report --out FOLDER` writes it"
        console.print(problem, style="yellow", soft_wrap=True, markup=False)
    where = "" if store == Path("var/store") else f" --store {store}"
    console.print(f"next:   jouleserve up --family {version.family}{where}", soft_wrap=True, markup=False)


def _about_joules(manifest: Manifest) -> str:
    evidence = manifest.variants[0].evidence
    band = evidence.energy_relative_uncertainty
    return f"joules: source {evidence.energy_source}" + ("" if band is None else f", ±{band:.0%}")


def guarded(program: str, run: Callable[[], object]) -> None:
    """Run a command; turns the errors that a user can act on into one line and an exit code."""
    # The meter warns that it estimates; the end of a run says so in its place.
    logging.getLogger("energy").setLevel(logging.ERROR)
    try:
        run()
    except InputError as error:
        sys.stderr.write(f"{program}: {error}\n")
        raise SystemExit(2) from None
    except (CompileError, StoreError) as error:
        sys.stderr.write(f"{program}: {error}\n")
        raise SystemExit(1) from None
    except OSError as error:
        if error.filename is None:
            raise
        remedy = "give another path, or make this one readable and writable"
        sys.stderr.write(f"{program}: {error.filename}: {error.strerror}. Remedy: {remedy}.\n")
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in _OURS:
            raise
        sys.stderr.write(f"{program}: the package '{error.name}' is not installed. Remedy: pip install '.[compile]'.\n")
        raise SystemExit(2) from None


def main() -> None:
    """Entry point."""
    guarded("jouleserve-compile", app)


if __name__ == "__main__":
    main()
