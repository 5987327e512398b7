"""How right answers are, in the one figure that floors, fronts and points go by, and how sure that figure is. Pure.

Of classes it is the share of right labels, of real numbers R2 clipped to [0, 1]; both are called accuracy here, as in
the manifest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compile.bootstrap import Floats, r2_lower, relative_accuracy_lower, relative_r2_lower
from compile.data.dataset import Labels
from compile.measure.accuracy import wilson_lower
from compile.measure.scores import r2

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Judged:
    """An accuracy with its one-sided 95 % lower bound, and the same of accuracy / the teacher's accuracy."""

    accuracy: float
    accuracy_lower: float
    relative_accuracy: float
    relative_accuracy_lower: float


def judge(labels: Labels, logits: Logits, teacher: Logits, seed: int) -> Judged:
    """Judge logits [rows, outputs] against labels [rows] and beside the teacher's logits on the same rows.

    Relative accuracy is 0 where the teacher's own accuracy is.
    """
    found = _of_numbers if labels.dtype.kind == "f" else _of_classes
    return found(labels, logits, teacher, seed)


def _of_classes(labels: Labels, logits: Logits, teacher: Logits, seed: int) -> Judged:
    right, teacher_right = logits.argmax(-1) == labels, teacher.argmax(-1) == labels
    count, rows = int(right.sum()), len(labels)
    bound = relative_accuracy_lower(right, teacher_right, seed)
    return Judged(count / rows, wilson_lower(count, rows), _ratio(count, int(teacher_right.sum())), bound)


def _of_numbers(labels: Labels, logits: Logits, teacher: Logits, seed: int) -> Judged:
    truth, made, theirs = (one.astype(np.float64) for one in (labels, logits[:, 0], teacher[:, 0]))
    reached = _clipped_r2(truth, made)
    return Judged(
        reached,
        min(reached, r2_lower(truth, made, seed)),
        _ratio(reached, _clipped_r2(truth, theirs)),
        relative_r2_lower(truth, made, theirs, seed),
    )


def _clipped_r2(truth: Floats, made: Floats) -> float:
    return float(np.clip(r2(truth, made), 0.0, 1.0))


def _ratio(one: float, whole: float) -> float:
    return one / whole if whole else 0.0
