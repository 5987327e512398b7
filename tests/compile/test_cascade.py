"""Temperatures, thresholds, fronts and the paired bootstrap: logic on arrays alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compile.bootstrap import relative_accuracies, relative_accuracy_lower
from compile.cascade import (
    Answers,
    Point,
    choose,
    confidence,
    dominated,
    expected_calibration_error,
    fit_temperature,
    mean_cost_over_floors,
    negative_log_likelihood,
    probabilities,
    rate,
    spread,
    thresholds,
)

seeds = st.integers(0, 2**16)
unit = st.floats(0, 1)
patient = settings(deadline=None, max_examples=30)


def texts(
    seed: int, rows: int = 400, labels: int = 4, noise: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits that are right more often than not, and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, labels, rows)
    logits = rng.normal(0, noise, (rows, labels))
    logits[np.arange(rows), truth] += 1.5
    return logits.astype(np.float32), truth


@patient
@given(seeds, st.floats(0.06, 19))
def test_no_other_temperature_makes_the_labels_likelier(seed: int, other: float) -> None:
    logits, truth = texts(seed, rows=60)
    fitted = negative_log_likelihood(logits, truth, fit_temperature(logits, truth))
    assert fitted <= negative_log_likelihood(logits, truth, other) + 1e-9


@patient
@given(seeds, st.floats(0.5, 3))
def test_logits_that_are_k_times_too_sure_get_k_times_the_temperature(seed: int, k: float) -> None:
    logits, truth = texts(seed)
    alone, scaled = fit_temperature(logits, truth), fit_temperature((logits * k).astype(np.float32), truth)
    assert scaled == pytest.approx(alone * k, rel=1e-4)


def test_the_temperature_that_labels_were_drawn_at_is_found_again_and_calibrates() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (20_000, 5)).astype(np.float32)
    sums = probabilities(logits, 2.0).cumsum(axis=-1)
    truth = (rng.random((len(logits), 1)) > sums).sum(axis=-1).clip(max=4)
    found = fit_temperature(logits, truth)
    right = logits.argmax(-1) == truth
    assert found == pytest.approx(2.0, rel=0.03)
    assert expected_calibration_error(confidence(logits, found), right) < 0.02
    assert expected_calibration_error(confidence(logits, 1.0), right) > 0.1


def test_labels_that_are_always_right_leave_the_temperature_at_its_bound() -> None:
    logits = np.eye(3, dtype=np.float32)
    assert fit_temperature(logits, np.arange(3)) == pytest.approx(0.05)
    assert fit_temperature(-logits, np.arange(3)) == pytest.approx(20.0)


def test_the_calibration_error_of_known_cases() -> None:
    sure, right = np.array([0.9] * 10), np.array([True] * 9 + [False])
    assert expected_calibration_error(sure, right) == pytest.approx(0.0)
    assert expected_calibration_error(sure, ~right) == pytest.approx(0.8)
    # Two bins that err in opposite directions do not cancel.
    two = np.array([0.2] * 10 + [0.9] * 10)
    assert expected_calibration_error(two, np.array([True] * 20)) == pytest.approx((0.8 + 0.1) / 2)
    assert expected_calibration_error(np.array([1.0]), np.array([True])) == 0.0


@given(st.lists(unit, min_size=1, max_size=60))
def test_thresholds_rise_and_let_neither_every_nor_no_text_escalate(values: list[float]) -> None:
    confident = np.array(values)
    made = thresholds(confident)
    assert made == sorted(set(made))
    for threshold in made:
        assert 0 < (confident < threshold).sum() < len(values)
        assert 0 <= threshold <= 1


def test_thresholds_keep_the_asked_percentages_and_stand_clear_of_every_text() -> None:
    confident = np.random.default_rng(0).random(1000)
    made = thresholds(confident, (95, 50, 5))
    assert [(confident < t).mean() for t in made] == pytest.approx([0.05, 0.5, 0.95])
    assert min(np.abs(confident - t).min() for t in made) > 0


def test_confidences_that_are_all_alike_give_no_threshold() -> None:
    assert thresholds(np.ones(100)) == []


def answers(seed: int = 0) -> tuple[list[Answers], NDArray[np.int64], NDArray[np.bool_]]:
    good, truth = texts(seed, noise=0.5)
    rng = np.random.default_rng(seed + 1)
    # The cheap one knows what it does not know: on a third of the texts it says nearly nothing.
    cheap = np.where(rng.random((len(truth), 1)) < 0.33, rng.normal(0, 0.2, good.shape), good).astype(np.float32)
    made = [Answers("full", good, 10.0, 30.0), Answers("nano", cheap, 2.0, 6.0)]
    return made, truth, good.argmax(-1) == truth


def rated(seed: int = 0) -> list[Point]:
    made, truth, teacher = answers(seed)
    return rate(made, {"full": 1.0, "nano": 1.0}, truth, teacher, seed=3)


def test_a_cascade_costs_the_first_and_the_escalated_share_of_the_second() -> None:
    for point in rated()[2:]:
        assert (point.variant, point.first) == ("full", "nano")
        assert point.cpu_seconds_per_1k == pytest.approx(2.0 + point.escalated_share * 10.0)
        assert point.joules_per_1k == pytest.approx(6.0 + point.escalated_share * 30.0)


def test_a_cascade_answers_each_text_by_the_one_that_it_reaches() -> None:
    made, truth, _ = answers()
    for point in rated()[2:]:
        wrong = 0
        for row, label in enumerate(truth):
            first = probabilities(made[1].logits[row : row + 1], point.temperature)[0]
            said = made[0].logits[row].argmax() if first.max() < point.threshold else first.argmax()
            wrong += int(said != label)
        assert point.accuracy == pytest.approx(1 - wrong / len(truth))


def test_a_cascade_that_escalates_where_the_cheap_one_fails_beats_both_prices() -> None:
    points = {point.name: point for point in rated()}
    some = [p for p in points.values() if p.first and p.cpu_seconds_per_1k < 0.7 * 10]
    assert max(p.accuracy for p in some) > points["nano"].accuracy + 0.15
    assert max(p.accuracy for p in some) > points["full"].accuracy - 0.01


def test_names_tell_both_variants_and_the_percentage_kept_and_never_repeat() -> None:
    names = [point.name for point in rated()]
    assert {"full", "nano", "full-nano-90", "full-nano-5"} <= set(names)
    made, truth, teacher = answers()
    long = "n" * 64
    taken = [made[0], replace(made[1], name=long), replace(made[1], name=f"full-{long[:28]}-90")]
    temperatures = {one.name: 1.0 for one in taken}
    names = [point.name for point in rate(taken, temperatures, truth, teacher, seed=3)]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 64


def test_unmeasured_joules_stay_unmeasured() -> None:
    made, truth, teacher = answers()
    points = rate([made[0], replace(made[1], joules_per_1k=None)], {"nano": 1.0}, truth, teacher, seed=3)
    assert {point.joules_per_1k for point in points if point.first} == {None}


values = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=12)


@given(values)
def test_the_front_beats_all_others_and_is_beaten_by_none(pairs: list[tuple[int, int]]) -> None:
    quality, cost = [float(q) for q, _ in pairs], [float(c) for _, c in pairs]
    beaten = dominated(quality, cost)
    front = [i for i, by in enumerate(beaten) if by is None]
    for i, by in enumerate(beaten):
        if by is not None:
            assert by in front
            assert quality[by] >= quality[i]
            assert cost[by] <= cost[i]
        else:
            assert not any(quality[j] > quality[i] and cost[j] <= cost[i] for j in range(len(pairs)))
            assert not any(quality[j] >= quality[i] and cost[j] < cost[i] for j in range(len(pairs)))
    assert len({pairs[i] for i in front}) == len(front)


FULL = Point("full", "full", 0.9, 1.0, 10.0)
NANO = Point("nano", "nano", 0.5, 0.5, 1.0)


def point(at: int, quality: float, cost: float, cascade: bool = True) -> Point:
    return Point(f"p{at}", "full", quality, quality, cost, first="nano" if cascade else None)


fronts = st.lists(st.tuples(unit, st.floats(1, 9.9), st.booleans()), min_size=1, max_size=9)


def a_front(drawn: list[tuple[float, float, bool]]) -> list[Point]:
    points = [point(at, *one) for at, one in enumerate(drawn)]
    beaten = dominated([p.relative_accuracy_lower for p in points], [p.cpu_seconds_per_1k for p in points])
    return [p for p, by in zip(points, beaten, strict=True) if by is None]


@given(fronts, st.integers(1, 6))
def test_what_is_spread_over_the_front_keeps_single_variants_and_the_limit(
    drawn: list[tuple[float, float, bool]], at_most: int
) -> None:
    front = a_front(drawn)
    chosen = spread(front, FULL, at_most)
    singles = [p for p in front if p.first is None]
    assert set(singles) <= set(chosen) <= set(front)
    assert len(chosen) + 1 <= max(at_most, len(singles) + 1)


@patient
@given(fronts)
def test_the_cascade_added_first_saves_more_than_any_other_would(drawn: list[tuple[float, float, bool]]) -> None:
    front = a_front(drawn)
    singles = [p for p in front if p.first is None]
    chosen = spread(front, FULL, len(singles) + 2)
    best = mean_cost_over_floors(front, chosen, FULL)
    for other in (p for p in front if p.first is not None and p not in chosen):
        assert best <= mean_cost_over_floors(front, [*singles, other], FULL) + 1e-12


def test_the_mean_cost_over_floors_of_a_known_front() -> None:
    front = [point(0, 0.0, 1.0), point(1, 0.25, 2.0), point(2, 1.0, 4.0)]
    # Floors up to 0.25 cost 2, the rest 4; without the last point only full quality reaches them.
    assert mean_cost_over_floors(front, front, FULL) == pytest.approx(0.25 * 2 + 0.75 * 4)
    assert mean_cost_over_floors(front, front[:2], FULL) == pytest.approx(0.25 * 2 + 0.75 * 10)
    assert mean_cost_over_floors(front[:1], front, FULL) == 10.0


@patient
@given(seeds, st.integers(1, 8))
def test_every_point_is_chosen_or_left_out_with_the_reason(seed: int, at_most: int) -> None:
    points = rated(seed % 5)
    chosen, why = choose(points, "full", at_most)
    assert {p.name for p in chosen} | set(why) | {"full"} == {p.name for p in points}
    assert not {p.name for p in chosen} & set(why)
    assert "full" not in why
    assert all(p.cpu_seconds_per_1k < 10 for p in chosen)


def test_a_variant_dearer_than_full_quality_is_left_out_whatever_it_answers() -> None:
    dear = Point("slow", "slow", 1.0, 1.1, 11.0)
    chosen, why = choose([FULL, dear, point(0, 0.9, 5.0), NANO], "full", 6)
    assert [p.name for p in chosen] == ["nano", "p0"]
    assert why["slow"] == "costs no less than 'full'"


def test_full_quality_that_is_beaten_is_neither_left_out_nor_in_the_way() -> None:
    better = point(0, 1.1, 5.0)
    chosen, why = choose([FULL, better, point(1, 1.0, 6.0), NANO], "full", 6)
    assert chosen == [NANO, better]
    assert list(why) == ["p1"]
    assert "'p0'" in why["p1"]


@given(seeds, st.integers(2, 200))
def test_the_bound_lies_at_or_below_the_ratio_and_is_the_same_each_time(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    teacher = rng.random(rows) < 0.9
    mine = np.where(rng.random(rows) < 0.1, ~teacher, teacher)
    assume(teacher.any())
    bound = relative_accuracy_lower(mine, teacher, seed=5)
    assert bound <= mine.sum() / teacher.sum() + 1e-12
    assert bound == relative_accuracy_lower(mine, teacher, seed=5)


def test_answers_right_on_the_teachers_texts_are_as_good_for_sure() -> None:
    teacher = np.array([True] * 9 + [False])
    assert relative_accuracy_lower(teacher, teacher, seed=0) == 1.0
    assert relative_accuracy_lower(np.zeros(10, dtype=bool), teacher, seed=0) == 0.0
    assert relative_accuracy_lower(~teacher, np.zeros(10, dtype=bool), seed=0) == 0.0


def test_resampling_outcomes_is_resampling_rows() -> None:
    rng = np.random.default_rng(2)
    teacher = rng.random(500) < 0.9
    mine = np.where(rng.random(500) < 0.08, ~teacher, teacher)
    rows = rng.integers(0, 500, (4000, 500))
    by_rows = mine[rows].sum(axis=1) / teacher[rows].sum(axis=1)
    by_outcomes = relative_accuracies(mine, teacher, 4000, seed=4)
    for quantile in (0.05, 0.5, 0.95):
        assert np.quantile(by_outcomes, quantile) == pytest.approx(np.quantile(by_rows, quantile), abs=0.003)
    assert by_outcomes.std() == pytest.approx(by_rows.std(), rel=0.06)
    # Were the two not paired, the ratio would be half as sure.
    apart = relative_accuracies(rng.permutation(mine), teacher, 4000, seed=4)
    assert apart.std() > 1.3 * by_outcomes.std()


@pytest.mark.parametrize(("mine", "teachers"), [(3, 4), (0, 0)])
def test_answers_to_other_texts_than_the_teachers_are_refused(mine: int, teachers: int) -> None:
    with pytest.raises(ValueError, match="right: must be one row a text"):
        relative_accuracy_lower(np.ones(mine, dtype=bool), np.ones(teachers, dtype=bool), seed=0)
