"""Paired bootstrap: how sure an accuracy relative to the teacher's is, both judged on the same texts.

Of real labels, accuracy is R2, clipped to [0, 1] (see `models.manifest`); its own bound is by the bootstrap, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
RESAMPLES = 2000
ONE_SIDED_LEVEL = 0.05
_PICKS_AT_ONCE = 1_000_000
_ROUNDING_SHARE = 1e-12


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


def clipped_r2s(targets: Floats, answers: Sequence[Floats], resamples: int, seed: int) -> Floats:
    """R2 of each of the answers (float64 [rows] each, as the targets) in `resamples` resamples of the rows, clipped to
    [0, 1]; float64 [answers, resamples].

    The rows of a resample depend on the seed and the number of rows alone. A resample whose targets are all the same
    counts as 0. Raises ValueError if the rows do not match or are none.
    """
    if targets.ndim != 1 or len(targets) == 0 or any(one.shape != targets.shape for one in answers):
        shapes = [one.shape for one in answers]
        raise ValueError(f"answers: must be one row a target, at least one, not {shapes} and {targets.shape}")
    rng, rows = np.random.default_rng(seed), len(targets)
    centred = targets - targets.mean()
    columns = np.stack([centred, centred**2, *((targets - one) ** 2 for one in answers)], axis=1)
    made, at_once = [], max(1, _PICKS_AT_ONCE // rows)
    for begin in range(0, resamples, at_once):
        picks = rng.integers(0, rows, (min(at_once, resamples - begin), rows))
        means = np.stack([column[picks].mean(axis=1) for column in columns.T])
        spread, errors = means[1] - means[0] ** 2, means[2:]
        # What rounding leaves of the variance of equal targets is no variance.
        varied = spread > _ROUNDING_SHARE * means[1]
        made.append(1 - np.divide(errors, spread, out=np.ones_like(errors), where=varied[None, :]))
    found: Floats = np.clip(np.concatenate(made, axis=1), 0.0, 1.0)
    return found


def r2_lower(targets: Floats, answers: Floats, seed: int, resamples: int = RESAMPLES) -> float:
    """One-sided 95 % lower bound of the clipped R2 (percentile method); see `clipped_r2s`."""
    return float(np.quantile(clipped_r2s(targets, [answers], resamples, seed)[0], ONE_SIDED_LEVEL))


def relative_r2_lower(
    targets: Floats, answers: Floats, teachers: Floats, seed: int, resamples: int = RESAMPLES
) -> float:
    """One-sided 95 % lower bound of R2 / the teacher's R2 on the same texts; see `clipped_r2s`.

    A resample in which the teacher's is 0 counts as 0.
    """
    mine, theirs = clipped_r2s(targets, [answers, teachers], resamples, seed)
    ratios = np.divide(mine, theirs, out=np.zeros(resamples), where=theirs > 0)
    return float(np.quantile(ratios, ONE_SIDED_LEVEL))
