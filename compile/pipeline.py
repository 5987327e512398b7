"""A recipe's whole way: load data and base, look into the store, run the line, publish, report.

Torch is imported only when there is work to do, so that a recipe that is in the store already is answered at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compile.artifact import Artifact
from compile.bases import Base, find_base
from compile.data.dataset import Dataset
from compile.data.loader import load_dataset
from compile.errors import RecipeError, StorageError, storage_error
from compile.families import family_of
from compile.measure.cpu import this_cpu
from compile.passes.base import Context
from compile.recipe import Recipe
from compile.run_key import RUN_KEY, run_key
from compile.runner import Reporter, Runner, Silent, exclusive
from compile.shifting import Shift
from models.manifest import TargetCpu
from models.store import NotFound, Store, StoreError, Version

if TYPE_CHECKING:
    from compile.line import Line

STAGING = "staging"
"""Folder of the work folder where a version is put together."""


@dataclass(frozen=True)
class Result:
    """What a run came to: the published version, whether it was there already, and variants that failed with why."""

    version: Version
    found: bool
    failures: dict[str, str]
    report: Path
    report_failed: str | None = None
    """Why the report could not be written, where that is so; the version is published all the same."""


def compile_recipe(
    recipe: Recipe, store: Store, work: Path, reporter: Reporter | None = None, shift: Shift | None = None
) -> Result:
    """Compile and publish a recipe, or find that it was. A `shift` is the reporter then, and waits between passes.
    A report that cannot be written fails nothing: `Result.report_failed` says why.

    Raises InputError: for the recipe, its data or base before anything is written; for a floor that nothing meets or a
    store or work folder that cannot be written, with the store as it was. GateFailed if full quality misses a gate that
    no field of the recipe sets, Busy if another run uses the work folder.
    """
    base = find_base(recipe.base, recipe.seed, work)
    _check_layers(recipe, base)
    dataset = load_dataset(recipe.data, recipe.seed)
    cpu = this_cpu()
    key = run_key(recipe, dataset.digest(), base, cpu)
    found = _in_store(store, recipe.family, key)
    if found is not None:
        return Result(found, True, {}, *_reported(store, found))
    _check_writable("store", store.root)
    _check_writable("work", work)
    try:
        with exclusive(work):
            return _compile(recipe, key, dataset, base, cpu, store, work, shift or reporter or Silent(), shift)
    except Exception as error:
        named = storage_error(error, store.root, work)
        if named is None:
            raise
        raise named from error


def _compile(
    recipe: Recipe,
    key: str,
    dataset: Dataset,
    base: Base,
    cpu: TargetCpu,
    store: Store,
    work: Path,
    reporter: Reporter,
    shift: Shift | None,
) -> Result:
    line = _line(recipe, dataset, base, cpu, work, reporter, shift)
    from compile.publish import publish

    outcome = line.run()
    context = line.runner.context
    version = publish(recipe, key, outcome, context, cpu, position_limit(base), store, work / STAGING)
    failures = {c.name: c.reason for c in outcome.candidates if c.reason is not None}
    return Result(version, False, failures, *_reported(store, version))


def _reported(store: Store, version: Version) -> tuple[Path, str | None]:
    """The version's report, written unless it is there; and why it could not be, where that is so."""
    path = report_path(store, version)
    try:
        if not path.is_file():
            from compile.report import write_report

            write_report(version, path)
    except OSError as error:
        return path, str(error)
    return path, None


def trained_teacher(recipe: Recipe, work: Path, reporter: Reporter | None = None) -> tuple[Artifact, Context]:
    """The recipe's teacher, from the cache where it was trained before, and what its passes were given.

    Raises as `compile_recipe` does.
    """
    base = find_base(recipe.base, recipe.seed, work)
    _check_layers(recipe, base)
    dataset = load_dataset(recipe.data, recipe.seed)
    with exclusive(work):
        line = _line(recipe, dataset, base, this_cpu(), work, reporter or Silent(), None)
        return line.teacher_stages()[-1], line.runner.context


def _line(
    recipe: Recipe, dataset: Dataset, base: Base, cpu: TargetCpu, work: Path, reporter: Reporter, shift: Shift | None
) -> Line:
    # Torch and the onnx tools take seconds to import.
    from compile.line import Line
    from compile.scratch import fill

    fill(base)
    context = Context(dataset, base, recipe.seed, recipe.threads, recipe.max_tokens, recipe.measure.batch_rows)
    data = Artifact("data", "data", dataset.digest(), Path())
    weights = Artifact("base", "base", base.digest, base.path)
    runner = Runner(work, context, reporter) if shift is None else Runner(work, context, reporter, shift.pause)
    return Line(recipe, runner, cpu, data, weights)


def position_limit(base: Base) -> int:
    """Longest input in tokens that the base's position table allows."""
    family = family_of(base.model_type)
    return family.position_limit(base.config)


def _check_layers(recipe: Recipe, base: Base) -> None:
    family = family_of(base.model_type)
    for at, variant in enumerate(recipe.variants):
        variant.layers_left(int(base.config[family.layer_count_key]), f"variants.{at}")
    if recipe.pooling not in family.poolings:
        problem = f"'{recipe.pooling}' says nothing of a text in {family.model_type}"
        raise RecipeError("pooling", problem, f"use one of {list(family.poolings)}")
    if recipe.max_tokens > position_limit(base):
        problem = f"{recipe.max_tokens} is more than the base's {position_limit(base)} positions"
        raise RecipeError("max_tokens", problem, "lower it")


def _check_writable(field: str, folder: Path) -> None:
    """Refuse before the work what would fail after it; writes nothing."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise StorageError(field, f"{existing} is a file, not a folder", "give another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(field, f"{existing} cannot be written", "give a folder that you may write to")


def _in_store(store: Store, family: str, key: str) -> Version | None:
    """The newest sound version that this very run made, put in force if it was not."""
    for name in reversed(store.versions(family)):
        try:
            version = store.open(family, name)
        except StoreError:
            continue
        if version.manifest.recipe.get(RUN_KEY) == key:
            try:
                in_force = store.current(family)
            except NotFound:
                in_force = ""
            if in_force != name:
                store.set_current(family, name)
            return version
    return None


def report_path(store: Store, version: Version) -> Path:
    """Where the report of a version lies: beside the store, `reports/<family>/<version>/report.md`."""
    return store.root.parent / "reports" / version.family / version.name / "report.md"
