"""Turns a recipe's `data` entry into a `Dataset`, or raises `DataError` naming what is wrong with it."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compile.data.dataset import Dataset, Labels, Split, carve, subset
from compile.data.support_intents import SupportSettings, generate, intents
from compile.errors import DataError
from compile.recipe import DataSpec

BUILTIN = "support-intents"
SPLITS = ("train", "validation", "test")
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
SCORE = "score"
"""The one label of a regression task."""
_LEAST_DEVIATION = 1e-4
"""Of the labels' mean: float32 knows numbers of that size to 6e-8 of it."""
_WHOLE, _REAL = re.compile(r"-?\d+"), re.compile(r"-?\d+(\.\d+)?")
_COLUMNS = "give columns 'text', optionally 'text_b', and 'label'"


def load_dataset(spec: DataSpec, seed: int) -> Dataset:
    """Load, complete and check the data set of a recipe.

    A missing validation split is carved out of train; a missing test split is the validation split (and validation
    is carved out of train), or a carved share of a single file. Raises DataError.
    """
    if spec.source == BUILTIN:
        if spec.task == "regression":
            raise DataError("data.task", f"the labels of {BUILTIN} are classes", "leave task out")
        dataset = builtin(seed)
    else:
        path = Path(spec.source)
        local = path.exists() or path.suffix.lower() in (".csv", ".parquet") or spec.source.startswith((".", "/", "~"))
        dataset = _complete(spec, _local(path) if local else _hub(spec.source), seed)
    for split, rows in zip(SPLITS, (spec.max_train_rows, spec.max_judged_rows, spec.max_judged_rows), strict=True):
        dataset = _shortened(dataset, split, rows, seed)
    _check(dataset)
    return dataset


def _shortened(dataset: Dataset, split: str, rows: int | None, seed: int) -> Dataset:
    """The data set with at most `rows` random rows in one split, and a note of it."""
    whole: Split = getattr(dataset, split)
    if rows is None or rows >= len(whole):
        return dataset
    note = f"{split}: {rows} of {len(whole)} rows, seed {seed}"
    used = {split: subset(whole, rows, seed), "notes": (*dataset.notes, note)}
    return replace(dataset, **used)  # type: ignore[arg-type]


def builtin(seed: int, test_rows: int = SupportSettings.test_rows) -> Dataset:
    """The built-in set; with more `test_rows` than usual, training and validation stay what they are."""
    made = generate(SupportSettings(seed=seed, test_rows=test_rows))
    train, validation, test = (
        Split(tuple(text for text, _ in made[name]), np.array([label for _, label in made[name]], dtype=np.int64))
        for name in SPLITS
    )
    return Dataset(BUILTIN, intents(), train, validation, test, (f"generated, seed {seed}",))


Rows = dict[str, list[Any]]


def _local(path: Path) -> tuple[dict[str, Rows], list[str] | None]:
    if not path.exists():
        raise DataError("data", f"{path.absolute()} does not exist", "give a parquet or CSV file or a folder of them")
    if path.is_file():
        names = path.parent / "labels.json"
        return {"all": _read(path)}, _label_names(names) if names.is_file() else None
    found = {}
    for split in SPLITS:
        for suffix in (".parquet", ".csv"):
            if (path / f"{split}{suffix}").is_file():
                found[split] = _read(path / f"{split}{suffix}")
                break
    if "train" not in found:
        raise DataError("data", f"{path} holds no train.parquet or train.csv", "put the training rows there")
    return found, _label_names(path / "labels.json") if (path / "labels.json").is_file() else None


def _read(path: Path) -> Rows:
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8") as handle:
                reader = csv.DictReader(handle)
                columns, rows = reader.fieldnames or (), list(reader)
            return {name: [row[name] for row in rows] for name in columns}
        parquet = importlib.import_module("pyarrow.parquet")
        table = parquet.read_table(path)
        return {name: table.column(name).to_pylist() for name in table.column_names}
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DataError("data", f"{path} cannot be read ({error})", "write it again as parquet or UTF-8 CSV") from error


def _label_names(path: Path) -> list[str]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        names = [str(raw[str(i)]) for i in range(len(raw))] if isinstance(raw, dict) else [str(name) for name in raw]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("data", f"{path}: not a list of label names ({error})", "map 0, 1, … to names") from error
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        problem = f"{path} calls labels {names.index(twice)} and {names.index(twice, names.index(twice) + 1)} '{twice}'"
        raise DataError("data.label", problem, "give each label a name of its own")
    return names


def _hub(source: str) -> tuple[dict[str, Rows], list[str] | None]:
    if not _HUB_ID.match(source):
        raise DataError("data", f"'{source}' is no path and no hub id", "give a file, a folder or owner/name")
    if importlib.util.find_spec("datasets") is None:
        remedy = "install the package 'datasets', or give a local path"
        raise DataError("data", f"'{source}' is no local path, and hub data sets need a reader", remedy)
    try:
        loaded = importlib.import_module("datasets").load_dataset(source)
    except Exception as error:
        raise DataError("data", f"'{source}' cannot be loaded ({error})", "check the id and the network") from error
    found: dict[str, Rows] = {}
    names = None
    for split in SPLITS:
        if split in loaded:
            found[split] = {name: list(loaded[split][name]) for name in loaded[split].column_names}
            names = getattr(loaded[split].features.get("label"), "names", None)
    if "train" not in found:
        raise DataError("data", f"'{source}' has no train split", "choose another data set")
    return found, names


def _complete(spec: DataSpec, loaded: tuple[dict[str, Rows], list[str] | None], seed: int) -> Dataset:
    tables, names = loaded
    if spec.task == "regression":
        labels: tuple[str, ...] = (SCORE,)
        splits = {name: _split(name, rows, _scores(name, rows)) for name, rows in tables.items()}
    else:
        numbers, labels = _numbering([value for rows in tables.values() for value in _column(rows, "label")], names)
        splits = {
            name: _split(name, rows, np.array([numbers[v] for v in _column(rows, "label")], dtype=np.int64))
            for name, rows in tables.items()
        }
    notes = [f"{name}: {len(split)} rows as given" for name, split in splits.items()]
    if "all" in splits:
        rest, splits["test"] = carve(splits.pop("all"), spec.validation_share, seed + 1)
        splits["train"] = rest
        notes.append(f"test: {len(splits['test'])} rows carved out")
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
        notes.append("test: the validation file, there is no test file")
    if "test" not in splits:
        splits["train"], splits["test"] = carve(splits["train"], spec.validation_share, seed + 1)
        notes.append(f"test: {len(splits['test'])} rows carved out of train")
    if "validation" not in splits:
        splits["train"], splits["validation"] = carve(splits["train"], spec.validation_share, seed)
        notes.append(f"validation: {len(splits['validation'])} rows carved out of train")
    train, validation, test = (splits[name] for name in SPLITS)
    return Dataset(Path(spec.source).name, labels, train, validation, test, tuple(notes))


def _column(rows: Rows, name: str) -> list[Any]:
    if name not in rows:
        raise DataError(f"data.{name}", f"no column '{name}' among {sorted(rows)}", _COLUMNS)
    return rows[name]


def _numbering(values: list[Any], names: list[str] | None) -> tuple[dict[Any, int], tuple[str, ...]]:
    """Map label values to numbers: whole numbers stand for themselves, words are sorted."""
    distinct = set(values)
    if None in distinct or "" in distinct:
        raise DataError("data.label", "some labels are empty", "remove those rows or label them")
    if all(isinstance(v, int) or (isinstance(v, str) and _WHOLE.fullmatch(v)) for v in distinct):
        count = len(names) if names else max((int(v) for v in distinct), default=-1) + 1
        if not names and count > len(values):
            problem = f"label {count - 1} of only {len(values)} rows"
            raise DataError("data.label", problem, "number labels from 0, without gaps")
        return {v: int(v) for v in distinct}, tuple(names or [str(i) for i in range(count)])
    if all(isinstance(v, int | float) or _REAL.fullmatch(str(v)) for v in distinct):
        raise DataError("data.label", "labels are real numbers", "set data.task to regression, or number the classes")
    words = names or sorted({str(v) for v in distinct})
    unknown = sorted(str(v) for v in distinct if str(v) not in words)
    if unknown:
        raise DataError("data.label", f"'{unknown[0]}' is not in labels.json", "add it there or correct the rows")
    return {v: words.index(str(v)) for v in distinct}, tuple(words)


def _scores(name: str, rows: Rows) -> Labels:
    values = _column(rows, "label")
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as that
            made = np.array([float(value) for value in values]).astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            "data.label", f"'{name}' has labels that are no numbers ({error})", "correct the rows"
        ) from error
    broken = np.flatnonzero(~np.isfinite(made))
    if len(broken):
        problem = f"{len(broken)} labels of '{name}' are not finite in float32, the first in row {broken[0] + 1}"
        raise DataError("data.label", problem, "remove those rows, or divide all labels by one number")
    return made


def _split(name: str, rows: Rows, labels: Labels) -> Split:
    texts = _texts(name, rows, "text")
    return Split(texts, labels, _texts(name, rows, "text_b") if "text_b" in rows else None)


def _texts(name: str, rows: Rows, column: str) -> tuple[str, ...]:
    texts = _column(rows, column)
    empty = [at for at, text in enumerate(texts) if text is None or not str(text).strip()]
    if empty:
        problem = f"{len(empty)} texts of '{name}' have zero length, the first in row {empty[0] + 1}"
        raise DataError(f"data.{column}", problem, "remove those rows")
    return tuple(str(text) for text in texts)


def _check(dataset: Dataset) -> None:
    for name in SPLITS:
        split: Split = getattr(dataset, name)
        if len(split) == 0:
            raise DataError(f"data.{name}", "has no rows", "give more rows")
        if not dataset.regression:
            _check_range(name, split, len(dataset.labels))
        if (split.texts_b is None) != (dataset.train.texts_b is None):
            raise DataError("data.text_b", f"split '{name}' differs from train", "give text_b in all files or none")
    if dataset.regression:
        _check_spread(dataset)
    elif len(set(dataset.train.labels.tolist())) < 2:
        raise DataError("data.label", "training rows have fewer than two labels", "give rows of each label")


def _check_spread(dataset: Dataset) -> None:
    for name in SPLITS:
        labels: Labels = getattr(dataset, name).labels
        if len(set(labels.tolist())) < 2:
            problem = f"all labels of '{name}' are {labels[0]:g}: nothing to learn, and R2 would be undefined"
            remedy = "give rows with other labels; a split without labels must be left out"
            raise DataError("data.label", problem, remedy)
    scale = dataset.label_scale
    if scale.deviation < _LEAST_DEVIATION * abs(scale.mean):
        problem = f"labels are {scale.mean:g} on average and deviate by {scale.deviation:g}: too little for float32"
        raise DataError("data.label", problem, "subtract one number from all labels")


def _check_range(name: str, split: Split, count: int) -> None:
    least, most = int(split.labels.min()), int(split.labels.max())
    if least < 0:
        remedy = "number labels from 0; a split without labels must be left out"
        raise DataError("data.label", f"label {least} in '{name}' is out of range", remedy)
    if most >= count:
        problem = f"label {most} in '{name}' is out of range, there are {count} labels"
        raise DataError("data.label", problem, "number labels from 0 and name each in labels.json")
