"""The predictor of joules: finds known coefficients, and its errors are of what it has not seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.measure.predictor import Measured, Predictor, fit, fit_and_judge
from compile.report.predictions import held_out

SIZES = [(20e6, 5e6), (60e6, 8e6), (90e6, 30e6), (240e6, 22e6), (110e6, 66e6), (300e6, 12e6)]


def _rows(predictor: Predictor, families: str = "aabbcc", noise: float = 0.0) -> list[Measured]:
    rng = np.random.default_rng(3)
    return [
        Measured(family, macs, parameters, predictor.joules_per_1k(macs, parameters) * (1 + noise * rng.normal()))
        for family, (macs, parameters) in zip(families, SIZES, strict=True)
    ]


@given(fixed=st.floats(0.01, 10), per_gmac=st.floats(0.1, 100), per_million=st.floats(0, 1))
def test_known_coefficients_are_found_again(fixed: float, per_gmac: float, per_million: float) -> None:
    rows = _rows(Predictor(fixed, per_gmac, per_million))
    found = fit(rows)
    assert found.fixed == pytest.approx(fixed, rel=1e-5, abs=1e-6)
    assert found.per_gmac == pytest.approx(per_gmac, rel=1e-5)
    assert found.per_million_parameters == pytest.approx(per_million, rel=1e-5, abs=1e-6)
    judged = fit_and_judge(rows)
    assert judged is not None
    assert judged.leave_one_out_worst < 1e-5
    assert judged.leave_family_out is not None
    assert judged.leave_family_out < 1e-5


@given(st.lists(st.floats(0.1, 100), min_size=6, max_size=6))
def test_no_coefficient_is_negative(joules: list[float]) -> None:
    found = fit([Measured("a", m, p, j) for (m, p), j in zip(SIZES, joules, strict=True)])
    assert min(found.fixed, found.per_gmac, found.per_million_parameters) >= 0


def test_the_stated_error_is_larger_than_that_of_the_fit_itself() -> None:
    rows = _rows(Predictor(1.0, 40.0, 0.1), noise=0.1)
    judged = fit_and_judge(rows)
    assert judged is not None
    p = judged.predictor
    seen = np.mean([abs(p.joules_per_1k(r.macs, r.parameters) - r.joules_per_1k) / r.joules_per_1k for r in rows])
    assert judged.leave_one_out > seen
    assert judged.leave_one_out_worst >= judged.leave_one_out
    assert (judged.rows, judged.families) == (6, 3)


def test_a_family_unlike_the_others_shows_in_the_error_of_families_alone() -> None:
    # Family b costs twice as much: its own members tell each other's cost, the other family does not.
    sizes = [(20e6, 5e6), (40e6, 5e6), (60e6, 5e6), (80e6, 5e6)]
    rows = [Measured(f, m, p, k * m / 1e6) for f, k in (("a", 1.0), ("b", 2.0)) for m, p in sizes]
    judged = fit_and_judge(rows)
    assert judged is not None
    assert judged.leave_family_out is not None
    assert judged.leave_family_out > judged.leave_one_out
    assert judged.leave_family_out == pytest.approx((1.0 + 0.5) / 2, rel=1e-6)


def test_a_twin_of_the_variant_that_is_held_out_is_held_out_with_it() -> None:
    # Costs that sizes do not tell: only a row's own twin could foretell them.
    sizes = [(20e6, 5e6), (60e6, 8e6), (90e6, 30e6), (240e6, 22e6)]
    rows = [Measured("a", m, p, j) for (m, p), j in zip(sizes, (9.0, 1.0, 6.0, 2.0), strict=True)]
    once, twice = fit_and_judge(rows), fit_and_judge([*rows, *rows])
    assert once is not None
    assert twice is not None
    assert twice.leave_one_out == pytest.approx(once.leave_one_out)
    assert twice.leave_one_out_worst == pytest.approx(once.leave_one_out_worst)
    assert np.allclose(held_out([*rows, *rows])[:4], held_out(rows))


def test_measurements_of_too_few_models_are_not_fitted_however_many_they_are() -> None:
    rows = _rows(Predictor(1.0, 40.0, 0.1), families="aaaaaa")[:3]
    assert fit_and_judge(rows * 5) is None


def test_too_few_variants_are_not_fitted_and_a_lone_family_has_no_error_apart() -> None:
    rows = _rows(Predictor(1.0, 40.0, 0.1), families="aaaaaa")
    assert fit_and_judge(rows[:3]) is None
    judged = fit_and_judge(rows)
    assert judged is not None
    assert judged.leave_family_out is None
    with pytest.raises(ValueError, match="there are none"):
        fit([])
