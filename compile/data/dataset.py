"""A labelled text set in memory: texts or pairs, classes or real numbers, three splits, a digest."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compile.scale import LabelScale

Labels = NDArray[Any]
"""int64 classes, or float32 where the task is regression."""


@dataclass(frozen=True)
class Split:
    """Rows of one split. `texts_b` is None unless the task is about pairs; `labels` has shape [rows]."""

    texts: tuple[str, ...]
    labels: Labels
    texts_b: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: list[int]) -> Split:
        """The rows of the given indices, in that order."""
        second = None if self.texts_b is None else tuple(self.texts_b[i] for i in rows)
        return Split(tuple(self.texts[i] for i in rows), self.labels[rows], second)


@dataclass(frozen=True)
class Dataset:
    """Three splits with the same labels; `notes` say how they came about. Regression has one label, the score."""

    name: str
    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    notes: tuple[str, ...] = field(default=())

    @property
    def pair(self) -> bool:
        """Whether a row is two texts."""
        return self.train.texts_b is not None

    @property
    def regression(self) -> bool:
        """Whether labels are real numbers."""
        return self.train.labels.dtype.kind == "f"

    @property
    def label_scale(self) -> LabelScale:
        """What training labels are measured by; of classes, nothing."""
        if not self.regression:
            return LabelScale()
        values = self.train.labels.astype(np.float64)
        return LabelScale(float(values.mean()), float(values.std()))

    def digest(self) -> str:
        """SHA-256 over labels and rows of all splits, in order; where the data came from does not count."""
        sha = hashlib.sha256("\x1f".join(self.labels).encode())
        for split in (self.train, self.validation, self.test):
            sha.update(b"\x1d")
            for i, text in enumerate(split.texts):
                second = "" if split.texts_b is None else "\x1f" + split.texts_b[i]
                sha.update(f"{text}{second}\x1f{split.labels[i]}\x1e".encode("utf-8", "surrogatepass"))
        return sha.hexdigest()


def carve(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Split off a random `share` of the rows: (rest, carved). The same seed gives the same rows."""
    order = list(range(len(split)))
    random.Random(f"carve/{seed}").shuffle(order)
    cut = max(1, round(len(split) * share))
    return split.take(sorted(order[cut:])), split.take(sorted(order[:cut]))


def subset(split: Split, rows: int, seed: int) -> Split:
    """A random subset of at most `rows` rows, in their order."""
    if rows >= len(split):
        return split
    return split.take(sorted(random.Random(f"subset/{seed}").sample(range(len(split)), rows)))
