"""Paired bootstrap: how sure an accuracy relative to the teacher's is, both judged on the same texts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
RESAMPLES = 2000
ONE_SIDED_LEVEL = 0.05


def relative_accuracies(right: Flags, teacher_right: Flags, resamples: int, seed: int) -> NDArray[np.float64]:
    """Accuracy / the teacher's accuracy in `resamples` resamples of the texts, float64 [resamples].

    `right` and `teacher_right` (bool [rows]) say which texts each answers rightly. Pairing matters: both mostly fail
    on the same hard texts, so their ratio is far surer than either accuracy (Efron and Tibshirani 1993, chapter 8).
    Only the four joint outcomes of a text count, so drawing rows with replacement is one multinomial draw a resample.
    A resample that the teacher gets wholly wrong counts as 0. Raises ValueError if the rows do not match or are none.
    """
    if right.shape != teacher_right.shape or right.ndim != 1 or len(right) == 0:
        raise ValueError(f"right: must be one row a text as the teacher's, not {right.shape} and {teacher_right.shape}")
    rows = len(right)
    outcomes = np.bincount(2 * teacher_right.astype(np.int64) + right, minlength=4)
    drawn = np.random.default_rng(seed).multinomial(rows, outcomes / rows, size=resamples)
    mine, teachers = drawn[:, 1] + drawn[:, 3], drawn[:, 2] + drawn[:, 3]
    ratios: NDArray[np.float64] = np.divide(mine, teachers, out=np.zeros(resamples), where=teachers > 0)
    return ratios


def relative_accuracy_lower(right: Flags, teacher_right: Flags, seed: int, resamples: int = RESAMPLES) -> float:
    """One-sided 95 % lower bound of accuracy / the teacher's accuracy (percentile method); see `relative_accuracies`.

    Where both are right on the very same texts the bound is the ratio itself: a bootstrap sees no doubt that the
    texts do not show.
    """
    return float(np.quantile(relative_accuracies(right, teacher_right, resamples, seed), ONE_SIDED_LEVEL))
