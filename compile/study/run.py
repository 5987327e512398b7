"""Runs the study's cells one after another and keeps each one's figures as a small JSON file.

A cell goes through the same line as any recipe; what it made is cached, so that a run that was killed goes on where it
stopped.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compile.errors import FloorError, GateFailed
from compile.pipeline import compile_recipe
from compile.recipe import load_recipe, parse_recipe
from compile.report import figures
from compile.runner import Reporter
from compile.study.plan import Cell, recipe_of
from models.store import Store, write_atomic

COMMAND = "make bench-compile"
RECIPE_KEY = "recipe_sha256"
_TEACHERS = {("bert", "sst2"): "sst2"}
"""Cells whose teacher is that of a recipe that comes with the project."""
_RECIPES = Path(__file__).parents[2] / "models" / "recipes"


def run_cells(
    planned: Sequence[Cell], data: Path, folder: Path, results: Path, reporter: Reporter, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The figures of every cell, those that have none with the reason; `data` holds a folder a set.

    `folder` gets the study's store and work, `results` one JSON file a cell; a cell whose recipe is that of a result
    kept there is not run again. `tell` is given a line as cells begin and end.
    """
    made, took = [], list[float]()
    kept = read_results(results)
    for at, cell in enumerate(planned):
        raw = recipe_of(cell, str(data), _teacher(cell, data))
        sha = _digest(raw)
        if kept.get(cell.name, {}).get(RECIPE_KEY) == sha:
            made.append(kept[cell.name])
            tell(f"cell {at + 1} of {len(planned)}: {cell.name} is in {results} already")
            continue
        left = f", about {_minutes(statistics.mean(took) * (len(planned) - at))} left" if took else ""
        tell(f"cell {at + 1} of {len(planned)}: {cell.family} on {cell.dataset} ({cell.described}){left}")
        began = time.monotonic()
        found = _run_cell(cell, raw, folder, reporter)
        took.append(time.monotonic() - began)
        path = results / f"{cell.name}.json"
        about = {"seconds": round(took[-1]), RECIPE_KEY: sha}
        write_atomic(path, (json.dumps(found | about, indent=1) + "\n").encode())
        made.append(found | about)
        tell(f"  {found.get('no_result') or 'done'} ({_minutes(took[-1])}): {path}")
    return made


def _digest(raw: Mapping[str, Any]) -> str:
    """What identifies a cell's recipe wherever its data lies."""
    named = {**raw, "data": {key: value for key, value in raw["data"].items() if key != "source"}}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _run_cell(cell: Cell, raw: dict[str, Any], folder: Path, reporter: Reporter) -> dict[str, Any]:
    """One cell's figures (see `compile.report.figures`), or why it has none."""
    about = {"cell": cell.name, "model": cell.family, "set": cell.dataset, "size": cell.described, "command": COMMAND}
    try:
        result = compile_recipe(parse_recipe(raw, None, {}), Store(folder / "store"), folder / "work", reporter)
    except (FloorError, GateFailed) as error:  # what the data say; anything else may go well another time
        return {**about, "no_result": str(error)}
    return figures(result.version.manifest) | about


def _teacher(cell: Cell, data: Path) -> dict[str, Any] | None:
    name = None if cell.scale == "quick" else _TEACHERS.get((cell.family, cell.dataset))
    if name is None:
        return None
    recipe = load_recipe(_RECIPES / f"{name}.yaml", {"data": str(data / cell.dataset)}, {})
    stages = [stage.model_dump(mode="json") for stage in recipe.finetune]
    return {"finetune": stages, "average_stages": recipe.average_stages}


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Every cell's figures that lie in a folder, by the cell's name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in _files(folder)}


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for kind in ("quick", "study", "whole") for path in folder.glob(f"{kind}-*.json"))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
