"""The budget policy: it keeps the budget where that can be kept, and comes up to it gradually."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from energy.grid.signal import Intensity
from models.manifest import OperatingPoint
from server.shaping.budget import BudgetState, course, end_of, period_of, spend
from server.shaping.policy import Decision, Inputs, PolicyState, decide
from server.shaping_settings import ShapingSettings

BEGIN = datetime(2024, 5, 1, tzinfo=UTC)
STEP_S = 900.0
FULL_J_PER_STEP = 3_600_000.0 / 96
"""A kWh a day at full quality, half of it at the cheaper point."""


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


def settings(**changes: Any) -> ShapingSettings:
    return ShapingSettings.model_validate({"policy": "budget", "budget_amount": 300, "swing_s": 900} | changes)


def play(
    days: float, chosen: ShapingSettings, grams: float | None = 400, busy: Any = lambda step: 1.0
) -> tuple[list[tuple[PolicyState, Decision]], float]:
    """Every step, and the kWh of the last day."""
    state, steps, joules, last = PolicyState(), [], 0.0, 0.0
    for step in range(round(days * 96)):
        now = BEGIN + timedelta(seconds=step * STEP_S)
        signal = None if grams is None else Intensity("Z", "test", now, grams, "live")
        state, decision = decide(state, signal, chosen, step * STEP_S, POINTS, Inputs(now, None, joules))
        steps.append((state, decision))
        used = FULL_J_PER_STEP * busy(step) * (1 - 0.5 * state.level)
        joules += used
        last = used / 3_600_000 + (last if step % 96 else 0.0)
    return steps, last


def test_a_budget_that_full_quality_keeps_changes_nothing() -> None:
    steps, _ = play(3, settings(budget_amount=420))
    assert {d.point for _, d in steps} == {"full"}
    assert steps[-1][1].reason.startswith("budget-kept:9")


def test_a_tight_budget_is_kept_and_used_up() -> None:
    steps, kwh = play(4, settings(budget_amount=300))
    assert kwh * 400 == pytest.approx(300, rel=0.02)
    assert all(abs(b.level - a.level) <= 1 + 1e-9 for (a, _), (b, _) in pairwise(steps))
    quiet = [state.level for state, _ in steps[96 * 3 + 8 : 96 * 4 - 8]]
    assert max(quiet) - min(quiet) < 0.1  # spread over the day, not run into at its end


def test_an_impossible_budget_ends_at_the_cheapest_point_and_says_so() -> None:
    steps, kwh = play(3, settings(budget_amount=50))
    assert kwh == pytest.approx(0.5, rel=0.05)
    assert steps[-1][1].point == "lite"
    assert steps[-1][1].reason.startswith("budget-spent:")


def test_kilowatt_hours_need_no_grid() -> None:
    _, kwh = play(4, settings(budget_amount=0.75, budget_unit="kwh"), grams=None)
    assert kwh == pytest.approx(0.75, rel=0.02)


def test_grams_without_an_intensity_are_booked_at_the_next_known_one() -> None:
    chosen = settings(budget_unit="grams")
    state = PolicyState()
    for step, grams in enumerate([400.0, None, 200.0]):
        now = BEGIN + timedelta(seconds=step * STEP_S)
        signal = None if grams is None else Intensity("Z", "t", now, grams, "live")
        state, _ = decide(state, signal, chosen, step * STEP_S, POINTS, Inputs(now, None, step * 3_600_000.0))
    assert state.budget.spent == pytest.approx(2 * 200)


def test_a_new_day_begins_with_a_whole_budget() -> None:
    steps, _ = play(1.1, settings(budget_amount=50))
    assert steps[95][1].reason.startswith("budget-spent")
    assert steps[97][0].budget.spent < 10


def spend_at(state: BudgetState, joules: float | None, hours: float, chosen: ShapingSettings) -> BudgetState:
    return spend(state, joules, 100.0, hours, 1.0, BEGIN, chosen)


@pytest.mark.parametrize("fallen_to", [7_199_999.0, 3_600_000.0, 0.0])
def test_a_meter_that_fell_back_books_neither_a_refund_nor_its_lifetime(fallen_to: float) -> None:
    before = BudgetState(
        period="2024-05-01", spent=10, joules_seen=7_200_000.0, full_per_hour=12, measured_hours=1, unbooked_hours=2
    )
    after = spend_at(before, fallen_to, 0.25, settings())
    assert after == replace(before, joules_seen=fallen_to, unbooked_hours=0)
    assert spend_at(after, fallen_to + 3_600_000, 0.25, settings()).spent == pytest.approx(110)


def test_the_power_of_the_start_does_not_pass_for_a_days() -> None:
    state = spend_at(BudgetState(), 0.0, 0.0, settings())
    state, joules = spend_at(state, 3_600_000.0, 0.1, settings()), 3_600_000.0
    for _ in range(239):
        joules += 3_600.0
        state = spend_at(state, joules, 0.1, settings())
    assert state.measured_hours == pytest.approx(24)
    assert state.full_per_hour == pytest.approx(state.spent / 24)


def test_hours_that_could_not_be_booked_count_with_their_joules() -> None:
    state = spend_at(BudgetState(), 0.0, 0.0, settings())
    for _ in range(10):
        state = spend_at(state, None, 0.5, settings())
    state = spend_at(state, 5.5 * 3_600_000, 0.5, settings())
    assert state.full_per_hour == pytest.approx(100)
    assert state.unbooked_hours == 0
    unread = spend_at(BudgetState(), None, 9.0, settings())
    assert unread.unbooked_hours == 9
    assert spend_at(unread, 5e9, 1.0, settings()).unbooked_hours == 0  # what came before the first sight is not known


def test_a_changed_unit_reads_no_grams_as_kilowatt_hours() -> None:
    grams = BudgetState(period="2024-05-01", spent=40, joules_seen=0.0, full_per_hour=12, measured_hours=5)
    kwh = spend_at(grams, 3_600_000.0, 0.5, settings(budget_unit="kwh"))
    assert (kwh.unit, kwh.spent, kwh.full_per_hour, kwh.measured_hours) == ("kwh", 1.0, 2.0, 0.5)
    assert spend_at(kwh, 3_600_000.0, 0.0, settings()).spent == 0


def test_the_periods_spending_counts_whichever_policy_was_in_force() -> None:
    state, joules, spent = PolicyState(), 0.0, []
    for step in range(96 * 6 + 48):
        day = step // 96
        chosen = settings() if day in (0, 6) else settings(policy="threshold")
        now = BEGIN + timedelta(seconds=step * STEP_S)
        signal = Intensity("Z", "t", now, 250, "live")
        state, _ = decide(state, signal, chosen, step * STEP_S, POINTS, Inputs(now, None, joules))
        spent.append(state.budget.spent)
        joules += FULL_J_PER_STEP
    assert max(spent) <= 251  # a day's, and never the whole tour's
    assert max(b - a for a, b in pairwise(spent)) == pytest.approx(250 / 96)
    halfway, _ = decide(state, signal, settings(policy="off"), 0, POINTS, Inputs(now, None, joules))
    assert halfway.budget.spent == pytest.approx(125, abs=4)


def test_what_was_spent_survives_a_restart() -> None:
    state = play(1.5, settings())[0][-1][0].budget
    assert BudgetState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_without_a_meter_quality_is_normal() -> None:
    _, decision = decide(PolicyState(), None, settings(), 0, POINTS, Inputs(BEGIN))
    assert (decision.point, decision.reason) == ("full", "budget-unmeasured")


def test_periods_end_at_midnight_or_at_the_months_end() -> None:
    december = datetime(2024, 12, 31, 23, tzinfo=UTC)
    assert (period_of(december, settings()), end_of(december, settings())) == (
        "2024-12-31",
        datetime(2025, 1, 1, tzinfo=UTC),
    )
    monthly = settings(budget_period="month")
    assert (period_of(december, monthly), end_of(december, monthly)) == ("2024-12", datetime(2025, 1, 1, tzinfo=UTC))


def test_a_budget_without_an_amount_is_refused() -> None:
    with pytest.raises(ValidationError, match="budget_amount: missing"):
        ShapingSettings(policy="budget")


@hypothesis_settings(max_examples=25, deadline=None)
@given(amount=st.floats(1, 1000), seed=st.integers(0, 1000))
def test_nobody_is_refused_and_strict_never_degraded_whatever_the_budget(amount: float, seed: int) -> None:
    steps, _ = play(0.5, settings(budget_amount=amount), busy=lambda step: ((step * 7919 + seed) % 13) / 6)
    for state, decision in steps:
        assert 0 <= state.level <= 1
        assert decision.point_by_class["strict"] == "full"


@pytest.mark.parametrize(("period", "elapsed"), [("day", 0.25), ("month", 14.25 / 31)])
def test_the_course_of_a_budget_is_told_in_shares_of_it_and_of_its_period(period: str, elapsed: float) -> None:
    chosen, now = settings(budget_period=period), datetime(2024, 5, 15, 6, tzinfo=UTC)
    state = BudgetState(period=period_of(now, chosen), spent=75.0)
    assert course(state, now, chosen) == {"spent_ratio": 0.25, "elapsed_ratio": pytest.approx(elapsed)}
    assert course(replace(state, period="2024-04"), now, chosen)["spent_ratio"] == 0.0  # type: ignore[index]
    assert course(replace(state, unit="kwh"), now, chosen) is None


def test_what_a_cheaper_point_saves_is_less_where_tokenizing_was_measured() -> None:
    now = BEGIN + timedelta(hours=12)
    state = PolicyState(budget=BudgetState("2024-05-01", spent=150, full_per_hour=17.0, measured_hours=24), decided=now)
    signal = Intensity("Z", "test", now, 400, "live")
    dear = tuple(one.model_copy(update={"tokenizing_cpu_seconds_per_1k": 1.0}) for one in POINTS)
    (_, bare), (_, whole) = (
        decide(state, signal, settings(swing_s=0), 0.0, points, Inputs(now)) for points in (POINTS, dear)
    )
    assert bare.split is not None
    assert whole.split is not None
    # 12.5 of 17 grams an hour are left: 26 % less. A half is saved by the graph alone, a third with tokenizing.
    assert (bare.split.share, whole.split.share) == (0.53, 0.79)
