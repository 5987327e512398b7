"""Matthews correlation, F1, correlations and errors: against scikit-learn and SciPy, and what their bounds promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.measure.scores import classification_scores, pearson, regression_scores, scores, spearman

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=80)
NUMBERS = st.lists(
    st.tuples(st.integers(-50, 50).map(float), st.floats(-1e3, 1e3).map(lambda x: round(x, 3))), min_size=3, max_size=40
)


def _columns(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(deadline=None)  # the first example waits for the import
@given(LABELS)
def test_matthews_and_f1_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels, predicted = _columns(pairs)
    found = classification_scores(labels, predicted, resamples=3)
    assert found["matthews"].value == pytest.approx(metrics.matthews_corrcoef(labels, predicted), abs=1e-9)
    expected = metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    assert found["f1_macro"].value == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(NUMBERS)
def test_correlations_and_the_error_are_those_of_scipy(pairs: list[tuple[float, float]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    targets, predicted = _columns(pairs)
    found = regression_scores(targets, predicted, resamples=2)
    assert found["rmse"].value == pytest.approx(np.sqrt(((targets - predicted) ** 2).mean()))
    if np.ptp(targets) == 0 or np.ptp(predicted) == 0:
        assert set(found) == {"rmse"}
        return
    assert found["pearson"].value == pytest.approx(stats.pearsonr(targets, predicted).statistic, abs=1e-6)
    assert found["spearman"].value == pytest.approx(stats.spearmanr(targets, predicted).statistic, abs=1e-9)


@given(LABELS)
def test_bounds_enclose_each_other_and_stay_in_the_scores_range(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = _columns(pairs)
    for name, least in (("matthews", -1.0), ("f1_macro", 0.0)):
        one = classification_scores(labels, predicted, resamples=50)[name]
        assert least <= one.lower <= one.upper <= 1.0


def test_the_same_seed_gives_the_same_bounds_and_another_one_others() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 200)
    predicted = np.where(rng.random(200) < 0.8, labels, 0)
    assert classification_scores(labels, predicted) == classification_scores(labels, predicted)
    other = classification_scores(labels, predicted, seed=1)
    assert other["matthews"].lower != classification_scores(labels, predicted)["matthews"].lower


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # A coin that is right in 80 of 100 cases on two equal classes has a Matthews correlation of 0.6.
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        labels = rng.integers(0, 2, 300)
        predicted = np.where(rng.random(300) < 0.8, labels, 1 - labels)
        one = classification_scores(labels, predicted, resamples=300)["matthews"]
        covered += one.lower <= 0.6 <= one.upper
    assert 0.88 <= covered / 200 <= 0.99


def test_more_rows_give_a_narrower_interval() -> None:
    labels = np.tile([0, 0, 1, 1], 25)
    predicted = np.tile([0, 0, 1, 0], 25)
    few = classification_scores(labels, predicted)["matthews"]
    many = classification_scores(np.tile(labels, 9), np.tile(predicted, 9))["matthews"]
    assert (many.upper - many.lower) == pytest.approx((few.upper - few.lower) / 3, rel=0.25)
    assert many.value == pytest.approx(few.value)


@given(st.floats(1e-6, 1e6), st.floats(-1e3, 1e3))
def test_correlations_do_not_mind_scale_and_shift(scale: float, shift: float) -> None:
    one, other = np.array([1.0, 2.0, 4.0, 3.0]), np.array([0.5, 0.1, 2.0, 1.0])
    assert pearson(scale * one + shift, other) == pytest.approx(pearson(one, other), abs=1e-3)
    assert spearman(scale * one, other) == pytest.approx(spearman(one, other))


def test_one_output_is_scored_as_regression_and_several_as_classes() -> None:
    assert set(scores(np.array([0.1, 0.5, 0.9]), np.array([[0.0], [0.6], [0.8]], dtype=np.float32))) == {
        "pearson", "spearman", "rmse"
    }  # fmt: skip
    assert set(scores(np.array([0, 1]), np.array([[1, 0], [0, 1]], dtype=np.float32))) == {"matthews", "f1_macro"}


@pytest.mark.parametrize(("one", "other"), [([], []), ([0, 1], [0])])
def test_no_rows_or_unequal_rows_are_refused(one: list[int], other: list[int]) -> None:
    with pytest.raises(ValueError, match="equal length, at least one row"):
        classification_scores(np.array(one, dtype=np.int64), np.array(other, dtype=np.int64))
