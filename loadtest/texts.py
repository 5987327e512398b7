"""Texts to ask with: from a file, in a shuffled or a popularity-shaped order."""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from loadtest.client import Question


def texts_file(name: str) -> Path:
    """A file of texts, as the type of an option: one that is not there is an error of the command line."""
    path = Path(name)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{name} does not exist; give a .csv, .parquet or .txt of texts")
    return path


def read_questions(path: Path) -> list[Question]:
    """Questions from a .csv or .parquet with a column `text` (and `label`, used if it is a name), or a .txt, one a
    line. Raises ValueError naming the file if there is nothing to ask in it."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        questions = _questions_of(parquet.read_table(path).to_pylist(), path)
    elif path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as handle:
            questions = _questions_of(csv.DictReader(handle), path)
    else:
        questions = [Question(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not questions:
        raise ValueError(f"{path}: holds no texts")
    return questions


def _questions_of(rows: Iterable[Mapping[str, object]], path: Path) -> list[Question]:
    questions = []
    for row in rows:
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str):
            raise ValueError(f"{path}: has no column `text`, or a row without one; name the texts' column so")
        # Replies name labels; a number could not be compared with them.
        questions.append(Question(text, label=label if isinstance(label, str) and not label.isdigit() else None))
    return questions


def popular(questions: Sequence[Question], seed: int, exponent: float = 1.0) -> Iterator[Question]:
    """An endless draw in which the n-th most popular text comes with weight `n ** -exponent` (Zipf)."""
    chance = random.Random(seed)
    order = list(questions)
    chance.shuffle(order)
    weights = [(rank + 1) ** -exponent for rank in range(len(order))]
    while True:
        yield from chance.choices(order, weights, k=1000)


def classes(questions: Iterator[Question], seed: int, shares: dict[str, float]) -> Iterator[Question]:
    """The same questions, each asked in a class drawn by `shares`."""
    chance = random.Random(seed)
    names, weights = list(shares), list(shares.values())
    for question in questions:
        yield Question(question.text, chance.choices(names, weights)[0], question.label)
