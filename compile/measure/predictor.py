"""Joules of a text predicted from a model's size: multiply-accumulates and parameters; pure functions.

"Computing Within Limits" proposes multiply-accumulates per parameter as an indicator of what inference costs. Here the
two counts predict joules themselves, and the error on models that the fit has not seen says how far that goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compile.measure.cpu import nonnegative_least_squares

MIN_ROWS = 4
"""One more than there are coefficients: with fewer, every fit is perfect and says nothing."""


@dataclass(frozen=True)
class Measured:
    """One measured variant; `family` groups variants of one data set and base, which resemble each other."""

    family: str
    macs: float
    parameters: float
    joules_per_1k: float

    @property
    def model(self) -> tuple[str, float, float]:
        """What tells it from other models; rows that agree in it are measurements of one, for the predictor."""
        return self.family, self.macs, self.parameters


@dataclass(frozen=True)
class Predictor:
    """`joules_per_1k = fixed + per_gmac * GMACs + per_million_parameters * parameters / 1e6`, none negative."""

    fixed: float
    per_gmac: float
    per_million_parameters: float

    def joules_per_1k(self, macs: float, parameters: float) -> float:
        """Predicted dynamic joules per 1,000 texts of a model with `macs` a text and `parameters`."""
        return self.fixed + self.per_gmac * macs / 1e9 + self.per_million_parameters * parameters / 1e6


@dataclass(frozen=True)
class Fitted:
    """A predictor and its relative errors |predicted - measured| / measured on what it was not fitted to."""

    predictor: Predictor
    rows: int
    families: int
    leave_one_out: float
    """Mean relative error, each variant predicted from all others that are not the same model (`Measured.model`)."""
    leave_one_out_worst: float
    leave_family_out: float | None
    """Mean relative error, each family predicted from the other ones; None where there are too few others."""


def fit(rows: Sequence[Measured]) -> Predictor:
    """Non-negative least squares on relative errors; raises ValueError without rows."""
    if not rows:
        raise ValueError("a predictor needs measured variants, there are none")
    joules = np.array([row.joules_per_1k for row in rows])
    columns = np.array([[1.0, row.macs / 1e9, row.parameters / 1e6] for row in rows])
    scale = columns.max(axis=0)
    scale[scale == 0] = 1.0
    solved = nonnegative_least_squares(columns / scale / joules[:, None], np.ones_like(joules)) / scale
    return Predictor(*(float(value) for value in solved))


def fit_and_judge(rows: Sequence[Measured]) -> Fitted | None:
    """The predictor of all rows with its errors; None if they are fewer than `MIN_ROWS` different models."""
    if _models(rows) < MIN_ROWS:
        return None
    families = {row.family for row in rows}
    alone = _errors([([row], others(row, rows)) for row in rows])
    splits = [([r for r in rows if r.family == f], [r for r in rows if r.family != f]) for f in sorted(families)]
    known = all(_models(rest) >= MIN_ROWS - 1 for _, rest in splits)
    apart = float(_errors(splits).mean()) if known else None
    return Fitted(fit(rows), len(rows), len(families), float(alone.mean()), float(alone.max()), apart)


def others(row: Measured, rows: Sequence[Measured]) -> list[Measured]:
    """What a fit may see that is judged by `row`: all rows but those of the same model."""
    return [other for other in rows if other.model != row.model]


def _models(rows: Sequence[Measured]) -> int:
    return len({row.model for row in rows})


def _errors(splits: Sequence[tuple[Sequence[Measured], Sequence[Measured]]]) -> NDArray[np.float64]:
    errors = []
    for held_out, rest in splits:
        predictor = fit(rest)
        for row in held_out:
            predicted = predictor.joules_per_1k(row.macs, row.parameters)
            errors.append(abs(predicted - row.joules_per_1k) / row.joules_per_1k)
    return np.array(errors)
