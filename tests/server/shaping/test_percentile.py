"""The percentile policy: ranks, the wanted share, its corrections, and that the dial neither flaps nor leaps."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from energy.grid.signal import Intensity, Kind
from models.manifest import OperatingPoint
from server.shaping.percentile import PercentileState, begun, elapse, sample, switched
from server.shaping.policy import Decision, DialState, Inputs, PolicyState, decide
from server.shaping.trail import SEASON_SAMPLES, YEAR_SAMPLES, Trail, Window
from server.shaping_settings import ShapingSettings

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


def point(name: str, relative_accuracy: float, cost: float) -> OperatingPoint:
    return OperatingPoint(
        name=name,
        variant=name,
        accuracy=relative_accuracy,
        accuracy_lower=0.5,
        relative_accuracy=relative_accuracy,
        cpu_seconds_per_1k=cost,
    )


POINTS = (point("full", 1.0, 2.0), point("lite", 0.97, 1.0))
THREE = (point("full", 1.0, 4.0), point("both", 0.99, 2.0), point("lite", 0.97, 1.0))


def settings(**changes: Any) -> ShapingSettings:
    return ShapingSettings.model_validate({"policy": "percentile", "swing_s": 0, "min_dwell_s": 0} | changes)


def reading(grams: float | None, kind: Kind = "live") -> Intensity | None:
    return None if grams is None else Intensity("Z", "test", BEGIN, grams, kind)


def play(
    grams: list[float | None],
    chosen: ShapingSettings,
    step_s: float = 3600,
    rates: list[float] | None = None,
    points: tuple[OperatingPoint, ...] = POINTS,
) -> list[tuple[PolicyState, Decision]]:
    state, steps = PolicyState(), []
    for index, value in enumerate(grams):
        inputs = Inputs(BEGIN + timedelta(seconds=index * step_s), rates[index] if rates else None)
        state, decision = decide(state, reading(value), chosen, index * step_s, points, inputs)
        steps.append((state, decision))
    return steps


def daily(days: int, seed: int = 1) -> list[float | None]:
    noise = random.Random(seed)
    wave = [300 + 100 * math.sin(2 * math.pi * hour / 24) for hour in range(24)]
    return [wave[h] + noise.gauss(0, 15) for _ in range(days) for h in range(24)]


def full_share(steps: list[tuple[PolicyState, Decision]]) -> float:
    return sum(1 - state.level for state, _ in steps) / len(steps)


def test_nothing_is_ranked_before_half_a_day_of_readings() -> None:
    steps = play([100.0, 900.0] * 10, settings())
    assert [d.reason for _, d in steps[:2]] == ["grid-learning:1/12", "grid-learning:2/12"]
    assert {d.point for _, d in steps[:11]} == {"full"}
    assert {d.point for _, d in steps[12:]} == {"full", "lite"}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_wanted_share_of_the_hours_stays_at_full_quality(share: float) -> None:
    steps = play(daily(120), settings(full_share=share, max_switches_per_day=10))
    assert full_share(steps) == pytest.approx(share, abs=0.02)


def test_the_dirty_hours_are_the_ones_that_fall_back() -> None:
    steps = play(daily(60), settings(max_switches_per_day=10))[240:]
    grams = daily(60)[240:]
    small = [g for g, (_, d) in zip(grams, steps, strict=True) if d.point == "lite" and g is not None]
    full = [g for g, (_, d) in zip(grams, steps, strict=True) if d.point == "full" and g is not None]
    assert sum(small) / len(small) > sum(full) / len(full) + 100


def test_a_share_counts_answers_and_not_hours() -> None:
    rates = [9.0 if 6 <= hour % 24 < 18 else 1.0 for hour in range(24 * 120)]
    steps = play(daily(120), settings(max_switches_per_day=10), rates=rates)
    answered = sum(rate * (1 - state.level) for rate, (state, _) in zip(rates, steps, strict=True)) / sum(rates)
    assert answered == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("allowed", [0.5, 1.0, 1.5])
def test_the_dial_turns_no_more_often_than_it_may(allowed: float) -> None:
    steps = play(daily(180), settings(max_switches_per_day=allowed))[24 * 90 :]
    turns = sum(a.dirty != b.dirty for (a, _), (b, _) in pairwise(steps))
    assert turns / 90 <= allowed * 1.1
    assert turns > 0


@pytest.mark.parametrize("allowed", [0.5, 1.0, 1.5])
def test_the_limit_on_switches_moves_the_share_neither_way(allowed: float) -> None:
    """A grid that asks for two switches every day: some are skipped at full quality, some at the cheaper point."""
    steps = play(daily(180), settings(max_switches_per_day=allowed))[24 * 60 :]
    assert full_share(steps) == pytest.approx(0.5, abs=0.02)
    held = {decision.point for _, decision in steps if decision.reason.startswith("switch-limit")}
    assert held == {"full", "lite"}
    assert all(abs(state.percentile.limit_hours) < 5 * 24 for state, _ in steps)


def test_a_spell_is_skipped_whole_and_not_entered_late() -> None:
    """Half of a night would cost both switches: the dial turns where the spells begin and end."""
    steps = play(daily(180), settings(max_switches_per_day=1.5))[24 * 60 :]
    hours = [hour % 24 for hour, ((a, _), (b, _)) in enumerate(pairwise(steps), 1) if a.dirty != b.dirty]
    assert len(hours) > 100
    off = [min(abs(hour - edge) for edge in (0, 12, 24)) for hour in hours]
    assert sum(hour <= 3 for hour in off) / len(off) > 0.95


def test_hours_without_a_reading_are_not_held_against_the_limit() -> None:
    """Only what the ranks asked for at the last decision counts; a feed that died asks for nothing."""
    state = PercentileState(asked=True)
    for hours in (2.0, 48.0):
        state = elapse(state, hours, 0.0, None, settings(), True)
    assert state.limit_hours == 2


def test_a_share_of_none_or_all_is_kept_whatever_the_grid() -> None:
    for share, level in ((0.0, 1.0), (1.0, 0.0)):
        steps = play(daily(10), settings(full_share=share, rank_band=0))[24:]
        assert {round(state.level, 6) for state, _ in steps} <= {level, 0.0, 1.0}
        assert full_share(steps) == pytest.approx(share, abs=0.1)


def test_debt_is_worked_off_over_months_and_not_at_once() -> None:
    grams = daily(60)
    grams[24 * 30 : 24 * 34] = [None] * 96
    steps = play(grams, settings(max_switches_per_day=10))
    assert {d.point for _, d in steps[24 * 30 + 1 : 24 * 34]} == {"full"}
    debt = steps[24 * 34][0].percentile.debt_hours
    assert debt > 40
    after = full_share(steps[24 * 34 : 24 * 48])
    assert 0.4 < after < 0.5
    assert steps[-1][0].percentile.debt_hours < debt


def test_cached_and_guessed_readings_are_ranked_but_never_remembered() -> None:
    state = play(daily(3), settings())[-1][0]
    for kind in ("cached", "forecast", "hour_of_week_mean", "static"):
        later, _ = decide(state, reading(5000, kind), settings(), 1e9, POINTS, Inputs(BEGIN + timedelta(days=9)))
        assert later.percentile.trail == state.percentile.trail


def test_the_dial_moves_from_end_to_end_within_the_swing_and_never_faster() -> None:
    grams: list[float | None] = [200.0 + i % 7 for i in range(48)] + [400.0] * 10
    warm = play(grams[:48], settings(swing_s=1800))[-1][0]
    levels = [warm.level]
    state, t = warm, BEGIN + timedelta(hours=48)
    for minute in range(0, 45, 5):
        now = t + timedelta(minutes=minute)
        state, decision = decide(state, reading(400), settings(swing_s=1800), 1e6 + minute * 60, POINTS, Inputs(now))
        levels.append(state.level)
        if decision.split is not None:
            assert decision.split.point == "lite"
            assert abs(decision.split.share - state.level) <= 0.011
    assert levels[-1] == 1.0
    assert all(later - earlier <= 1 / 6 + 1e-9 for earlier, later in pairwise(levels[1:]))


def test_between_the_ends_the_dial_walks_over_the_points_in_between() -> None:
    grams: list[float | None] = [200.0 + i % 7 for i in range(24)] + [400.0] * 9
    steps = play(grams, settings(swing_s=8 * 3600, max_switches_per_day=48), points=THREE)[24:]
    seen = [(d.point, d.split.point if d.split else None) for _, d in steps]
    assert ("full", "both") in seen
    assert ("both", "lite") in seen
    assert seen[-1] == ("lite", None)
    assert all(d.point_by_class["strict"] == "full" for _, d in steps)


def test_flapping_a_hundred_times_around_the_threshold_switches_at_most_twice_a_dwell() -> None:
    chosen = settings(min_dwell_s=900, rank_band=0, max_switches_per_day=48)
    state = play(daily(20), chosen)[-1][0]
    middle = 300.0
    turns, t0 = [], BEGIN + timedelta(days=20)
    for index in range(200):
        now_s = 20 * 86_400 + index * 30.0
        grams = middle + (100 if index % 2 else -100)
        inputs = Inputs(t0 + timedelta(seconds=index * 30))
        later, _ = decide(state, reading(grams), chosen, now_s, POINTS, inputs)
        if later.dirty != state.dirty:
            turns.append(now_s)
        state = later
    assert turns
    assert all(sum(start <= t < start + 900 for t in turns) <= 2 for start in turns)


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    grams=st.lists(st.one_of(st.none(), st.floats(0, 1500)), min_size=1, max_size=120),
    share=st.floats(0, 1),
    swing=st.sampled_from([0, 900, 7200]),
    step=st.sampled_from([60.0, 1800.0, 90_000.0]),
    floor=st.floats(0, 1),
)
def test_strict_is_never_degraded_and_the_same_past_gives_the_same_decisions(
    grams: list[float | None], share: float, swing: float, step: float, floor: float
) -> None:
    chosen = settings(full_share=share, swing_s=swing, floors={"standard": floor, "eco": 0})
    steps = play(grams, chosen, step, points=THREE)
    assert steps == play(grams, chosen, step, points=THREE)
    accuracy = {p.name: p.relative_accuracy for p in THREE}
    for state, decision in steps:
        assert 0 <= state.level <= 1
        assert decision.point_by_class["strict"] == "full"
        for name in DialState.of(decision, 1).points() - {decision.point_by_class["eco"]}:
            assert name == "full" or accuracy[name] >= floor


def test_what_was_learned_survives_a_restart() -> None:
    state = play(daily(70), settings())[-1][0]
    kept = PolicyState.from_dict(state.to_dict())
    assert kept.percentile.trail.count == state.percentile.trail.count
    assert kept.percentile.trail.rank(300, 0.5) == pytest.approx(state.percentile.trail.rank(300, 0.5), abs=0.01)
    assert kept.percentile.debt_hours == state.percentile.debt_hours
    assert kept.percentile.limit_hours == state.percentile.limit_hours != 0
    older = {name: value for name, value in state.percentile.to_dict().items() if name != "limit_hours"}
    assert PercentileState.from_dict(older).debt_hours == state.percentile.debt_hours


def passed(rates: list[float], hours: float) -> PercentileState:
    """What is left of so many intervals, each with its rate and a reading at its end."""
    state = PercentileState()
    for rate in rates:
        state = sample(elapse(state, hours, 0.0, rate, settings(), True), 300.0)
    return state


@pytest.mark.parametrize("first", [0.0, 10.0, 1000.0])
def test_what_the_first_interval_brings_does_not_hold_it_in_learning(first: float) -> None:
    state = passed([first] + [10.0] * 575, 1 / 12)
    assert 48 / 1.55 < state.trail.count < 48 * 1.55
    assert state.usual_rate is not None
    assert state.usual_rate == pytest.approx(10, rel=0.25)


def test_hours_before_the_first_request_do_not_make_nothing_usual() -> None:
    quiet = passed([0.0] * 300, 1 / 12)
    assert (quiet.usual_rate, quiet.rated_hours, quiet.debt_hours) == (None, 0.0, 0.0)
    assert passed([0.0] * 300 + [4.0] * 12, 1 / 12).usual_rate == pytest.approx(4)


@given(st.lists(st.sampled_from([0.0, 5e-324, 1e-9, 1.0, 1e300]), max_size=30), st.sampled_from([0.0, 1 / 12, 6.0]))
def test_whatever_the_rates_an_hour_weighs_something_finite(rates: list[float], hours: float) -> None:
    state = passed(rates, hours)
    assert all(map(math.isfinite, (state.debt_hours, state.unsampled_hours, state.usual_rate or 0.0)))
    assert abs(state.debt_hours) <= 5 * hours * len(rates)


def test_after_days_of_off_it_knows_the_grid_and_owes_nothing() -> None:
    chosen, grams = settings(max_switches_per_day=10), daily(90)
    state = play(grams[: 24 * 30], settings(policy="off"))[-1][0]
    assert (state.percentile.debt_hours, state.percentile.allowance_days) == (0.0, PercentileState().allowance_days)
    levels = []
    for hour in range(24 * 30, 24 * 90):
        inputs = Inputs(BEGIN + timedelta(hours=hour))
        state, decision = decide(state, reading(grams[hour]), chosen, hour * 3600, POINTS, inputs)
        assert decision.reason.startswith(("rank-", "switch-"))
        levels.append(state.level)
    assert sum(levels) / len(levels) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("other", ["threshold", "off", "budget"])
def test_what_other_policies_do_is_neither_debt_nor_a_switch_of_its_own(other: str) -> None:
    chosen = settings(policy=other, budget_amount=1.0)
    state = play([100.0, 900.0] * 200, chosen)[-1][0].percentile
    fresh = PercentileState()
    assert (state.debt_hours, state.allowance_days) == (fresh.debt_hours, fresh.allowance_days)
    assert state.switches_per_day == 0


def test_a_limit_that_was_lowered_leaves_no_switches_owed() -> None:
    dirty = PercentileState(allowance_days=1.0)
    assert switched(dirty, settings(max_switches_per_day=0.1)).allowance_days == 0
    assert switched(dirty, settings(max_switches_per_day=2)).allowance_days == 0.5


def test_a_constant_grid_is_judged_by_the_thresholds_and_says_so() -> None:
    chosen = settings(dirty_above_grams_per_kwh=350, clean_below_grams_per_kwh=300)
    decisions = []
    for grams in (400, 320, 250):
        state, decision = decide(PolicyState(dirty=grams == 320), reading(grams, "static"), chosen, 0, POINTS)
        decisions.append((decision.point, decision.reason))
        state, _ = decide(state, reading(grams, "static"), chosen, 6 * 3600, POINTS)
        assert state.percentile.debt_hours == 0
    assert decisions == [
        ("lite", "static-dirty:400>350"),
        ("lite", "static-band:320"),
        ("full", "static-clean:250<300"),
    ]
    assumed = Intensity("Z", "test", BEGIN, 473, "static", True)
    assert decide(PolicyState(), assumed, chosen, 0, POINTS)[1].reason == "grid-assumed"


@given(st.lists(st.floats(0, 1500), max_size=60), st.integers(1, 20), st.floats(0, 1500))
def test_a_windows_rank_is_that_of_its_newest_samples(values: list[float], limit: int, asked: float) -> None:
    window = Window()
    for value in values:
        window = window.with_sample(value, limit)
    newest = values[-limit:]
    assert window.timed == tuple(newest)
    assert window.ordered == tuple(sorted(newest))
    below = sum(v < asked for v in newest) + sum(v == asked for v in newest) / 2
    assert window.rank(asked) == pytest.approx(below / len(newest) if newest else 0.5)


def test_the_trail_is_bounded_and_damaged_ones_are_refused() -> None:
    trail = Trail()
    for value in range(SEASON_SAMPLES + 30):
        trail = trail.with_sample(float(value % 500))
    assert len(trail.season.timed) == SEASON_SAMPLES
    with pytest.raises(ValueError, match="no grid's intensity"):
        Trail.from_dict({"count": 1, "season": [-5], "year": []})


def test_a_trail_made_at_once_is_the_one_that_grows_by_samples() -> None:
    values = [float(hour % 37) for hour in range(9500)]
    grown = Trail()
    for value in values[-1600:]:
        grown = grown.with_sample(value)
    assert Trail.of(values[-1600:]) == grown
    assert len(Trail.of(values).year.timed) == YEAR_SAMPLES


def test_a_given_past_is_for_a_state_that_has_learned_none() -> None:
    fresh = begun(PercentileState(), [100.0, 200.0, 300.0])
    assert fresh.trail.count == 3
    assert begun(fresh, [1.0] * 50) is fresh
    assert begun(PercentileState(), ()).trail.count == 0
