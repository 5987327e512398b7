"""Scores of predictions against labels, each between the bounds of a seeded bootstrap interval; pure functions.

The intervals are 95 % percentile intervals (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 13) over resampled test rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.manifest import Estimate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RESAMPLES = 1000
_TAILS = (2.5, 97.5)


def scores(labels: NDArray[np.generic], logits: NDArray[np.float32]) -> dict[str, Estimate]:
    """Scores of a graph's logits [rows, outputs] against labels [rows]: of regression where there is one output."""
    if logits.shape[1] == 1:
        return regression_scores(labels.astype(np.float64), logits[:, 0].astype(np.float64))
    return classification_scores(labels.astype(np.int64), logits.argmax(-1))


def classification_scores(
    labels: Ints, predicted: Ints, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """`matthews` and `f1_macro` of label numbers, both int64 [rows]; raises ValueError without rows.

    Only the counts of (label, prediction) matter to both, and resampling rows draws those counts from a multinomial
    distribution: one draw a resample serves for any number of rows.
    """
    _refuse_unequal(labels, predicted)
    cells, counts = np.unique(np.stack([labels, predicted]), axis=1, return_counts=True)
    rows = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(rows, counts / rows, size=resamples)
    every = np.concatenate([counts[None], drawn]).astype(np.float64)
    return {"matthews": _estimate(matthews(cells, every)), "f1_macro": _estimate(f1_macro(cells, every))}


def regression_scores(
    targets: Floats, predicted: Floats, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """`pearson`, `spearman` and `rmse` of numbers, both [rows]; raises ValueError without rows.

    A correlation is left out where it is undefined: one side is constant.
    """
    _refuse_unequal(targets, predicted)
    rng = np.random.default_rng(seed)
    picks = [np.arange(len(targets)), *rng.integers(0, len(targets), (resamples, len(targets)))]
    scores: dict[str, Callable[[Floats, Floats], float]] = {"pearson": pearson, "spearman": spearman, "rmse": rmse}
    made = {name: np.array([score(targets[p], predicted[p]) for p in picks]) for name, score in scores.items()}
    return {name: _estimate(values) for name, values in made.items() if np.isfinite(values[0])}


def matthews(cells: Ints, counts: Floats) -> Floats:
    """Matthews correlation of K classes (Gorodkin, Comput. Biol. Chem. 28, 2004), one for each row of counts.

    `cells` [2, n] holds (label, prediction) pairs, `counts` [resamples, n] how often each was seen. 0 where all
    labels or all predictions are one class.
    """
    of_label, of_prediction, right = _sums(cells, counts)
    rows = counts.sum(axis=1)
    above = right.sum(axis=1) * rows - (of_label * of_prediction).sum(axis=1)
    spread = (rows**2 - (of_prediction**2).sum(axis=1)) * (rows**2 - (of_label**2).sum(axis=1))
    found: Floats = np.divide(above, np.sqrt(spread), out=np.zeros_like(above), where=spread > 0)
    return found


def f1_macro(cells: Ints, counts: Floats) -> Floats:
    """Mean of the classes' F1 = 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979), over the classes that occur.

    Shapes as in `matthews`. A class occurs if it is the label or the prediction of a row.
    """
    of_label, of_prediction, right = _sums(cells, counts)
    both = of_label + of_prediction
    each = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
    mean: Floats = each.sum(axis=1) / (both > 0).sum(axis=1)
    return mean


def pearson(one: Floats, other: Floats) -> float:
    """Correlation of two series [rows] (Pearson 1895); NaN where one of them is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    a, b = one - one.mean(), other - other.mean()
    # Scaled first: squares of very small or very large numbers would leave the range of floats.
    a, b = a / np.abs(a).max(), b / np.abs(b).max()
    return float(np.clip((a @ b) / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def spearman(one: Floats, other: Floats) -> float:
    """Pearson's correlation of the ranks, equal values sharing their mean rank (Spearman 1904)."""
    return pearson(_ranks(one), _ranks(other))


def rmse(one: Floats, other: Floats) -> float:
    """Root of the mean squared difference of two series [rows]."""
    return float(np.sqrt(np.mean((one - other) ** 2)))


def r2(targets: Floats, predicted: Floats) -> float:
    """Coefficient of determination of two series [rows]: 1 - mean squared error / variance of the targets.

    1 is perfect, 0 as good as always answering the targets' mean. Minus infinity where all targets are the same.
    """
    spread = float(targets.var())
    return 1 - float(np.mean((targets - predicted) ** 2)) / spread if spread > 0 else float("-inf")


def _sums(cells: Ints, counts: Floats) -> tuple[Floats, Floats, Floats]:
    """How often each class is the label, the prediction, and both, [resamples, classes] each."""
    classes = np.arange(int(cells.max()) + 1)
    is_label = (cells[0][:, None] == classes).astype(np.float64)
    is_prediction = (cells[1][:, None] == classes).astype(np.float64)
    return counts @ is_label, counts @ is_prediction, counts @ (is_label * is_prediction)


def _ranks(values: Floats) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: Floats = np.cumsum(counts) - (counts - 1) / 2
    return means[places]


def _estimate(values: Floats) -> Estimate:
    """The first value is the score itself, the rest its resamples."""
    lower, upper = np.nanpercentile(values, _TAILS)
    return Estimate(value=float(values[0]), lower=float(lower), upper=float(upper))


def _refuse_unequal(one: NDArray[np.generic], other: NDArray[np.generic]) -> None:
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"scores need two series of equal length, at least one row, not {one.shape} and {other.shape}")
