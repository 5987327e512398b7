"""When work that can wait runs: never late if there is time, at its deadline anyway, and in the cleanest hours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from energy.grid.windows import Period, Work, plan

HOUR = 3600.0
WORST = 2000.0
grams = st.lists(st.one_of(st.none(), st.integers(1, 900)), min_size=1, max_size=8)
wishes = st.lists(st.tuples(st.integers(1, 9 * 3600), st.integers(1, 2 * 3600)), min_size=1, max_size=6)
begins = st.integers(0, 3599)


def periods_of(values: list[int | None]) -> list[Period]:
    return [Period(i * HOUR, (i + 1) * HOUR, None if v is None else float(v)) for i, v in enumerate(values)]


def works_of(wishes: list[tuple[int, int]], now_s: float = 0.0) -> list[Work]:
    return [Work(f"w{i}", now_s + within, float(seconds)) for i, (within, seconds) in enumerate(wishes)]


def fits(works: list[Work], now_s: float) -> bool:
    """Whether all can be done in time at all, one after the other, nearest deadline first."""
    end_s = now_s
    for work in sorted(works, key=lambda one: one.deadline_s):
        end_s += work.seconds
        if end_s > work.deadline_s + 1e-6:
            return False
    return True


@given(grams, wishes, begins)
def test_what_fits_is_never_late(values: list[int | None], wishes: list[tuple[int, int]], now_s: int) -> None:
    works = works_of(wishes, now_s)
    made = plan(works, periods_of(values), now_s)
    if fits(works, now_s):
        assert made.short_s == {}
    used: dict[float, float] = {}
    for work in sorted(works, key=lambda one: one.deadline_s):
        stretches = made.stretches[work.name]
        total = sum(one.seconds for one in stretches) + made.short_s.get(work.name, 0.0)
        assert total == pytest.approx(work.seconds)
        for one in stretches:
            begin = max(one.period.start_s, now_s)
            used[one.period.start_s] = used.get(one.period.start_s, 0.0) + one.seconds
            # Run one after the other, nearest deadline first, each is done in its period and in time.
            assert begin + used[one.period.start_s] <= min(one.period.end_s, work.deadline_s) + 1e-6


@given(grams, wishes, begins)
def test_no_other_choice_is_cleaner(values: list[int | None], wishes: list[tuple[int, int]], now_s: int) -> None:
    works = works_of(wishes, now_s)
    made = plan(works, periods_of(values), now_s)
    if made.short_s:
        return
    slots = [one for one in periods_of(values) if one.end_s > now_s]
    until_s = max(work.deadline_s for work in works)
    last_s = slots[-1].end_s if slots else now_s
    if last_s < until_s:
        slots.append(Period(last_s, until_s, None))

    def cost(period: Period) -> float:
        return WORST if period.grams_per_kwh is None else period.grams_per_kwh

    # Each work's seconds in each period: enough in all; up to each deadline no more than there is time for.
    order = sorted(works, key=lambda one: one.deadline_s)
    size = len(slots)
    equal = np.kron(np.eye(len(order)), np.ones(size))
    rows, most = [], []
    for at, slot in enumerate(slots):
        for upto, work in enumerate(order):
            row = np.zeros((len(order), size))
            row[: upto + 1, at] = 1
            rows.append(row.ravel())
            most.append(max(0.0, min(slot.end_s, work.deadline_s) - max(slot.start_s, now_s)))
    costs = np.tile([cost(slot) for slot in slots], len(order))
    best = linprog(costs, np.array(rows), most, equal, [work.seconds for work in order])
    assert best.status == 0
    chosen = sum(cost(one.period) * one.seconds for stretches in made.stretches.values() for one in stretches)
    assert chosen == pytest.approx(best.fun, rel=1e-6, abs=1e-3)


@given(grams, wishes, begins)
def test_at_its_deadline_everything_runs(values: list[int | None], wishes: list[tuple[int, int]], now_s: int) -> None:
    works = works_of(wishes, now_s)
    made = plan(works, periods_of(values), now_s)
    for name in made.short_s:
        assert made.runs_now(name) > 0
        assert made.starts_s(name) == now_s
    overdue = [Work(work.name, now_s - 1.0, work.seconds) for work in works]
    late = plan(overdue, periods_of(values), now_s)
    assert [late.runs_now(work.name) for work in overdue] == [pytest.approx(work.seconds) for work in overdue]


@given(grams, wishes)
def test_who_follows_the_plan_from_hour_to_hour_is_done_in_time(
    values: list[int | None], wishes: list[tuple[int, int]]
) -> None:
    works = {work.name: work for work in works_of(wishes)}
    if not fits(list(works.values()), 0.0):
        return
    now_s = 0.0
    for _ in range(200):
        if not works:
            return
        made = plan(works.values(), periods_of(values), now_s)
        ran = [name for name in sorted(works, key=lambda n: works[n].deadline_s) if made.runs_now(name) > 0]
        for name in ran:
            seconds = made.runs_now(name)
            now_s += seconds
            assert now_s <= works[name].deadline_s + 1e-3
            left = works[name].seconds - seconds
            works[name] = Work(name, works[name].deadline_s, left)
            if left <= 1e-3:
                del works[name]
        if not ran:
            changes = made.changes_s()
            assert changes is not None
            now_s = changes
    raise AssertionError("never done")


def test_a_short_work_waits_for_the_one_clean_hour() -> None:
    made = plan([Work("a", 5 * HOUR, 60.0)], periods_of([300, 200, 100, 250, 90, 10]), 0.0)
    assert made.starts_s("a") == 4 * HOUR
    assert made.runs_now("a") == 0
    assert made.changes_s() == 4 * HOUR


def test_a_long_work_takes_the_clean_hours_and_leaves_the_dirty_ones_between_them() -> None:
    made = plan([Work("a", 6 * HOUR, 2.5 * HOUR)], periods_of([300, 100, 400, 110, 400, 120]), 0.0)
    assert [(one.period.start_s / HOUR, one.seconds / HOUR) for one in made.stretches["a"]] == [
        (1, 1),
        (3, 1),
        (5, 0.5),
    ]


def test_where_nothing_is_known_or_all_is_equal_it_runs_at_once() -> None:
    for values in ([None, None, None], [50, 50, 50]):
        assert plan([Work("a", 3 * HOUR, 60.0)], periods_of(values), 10.0).runs_now("a") == 60.0  # type: ignore[arg-type]
    assert plan([Work("a", 3 * HOUR, 60.0)], (), 10.0).runs_now("a") == 60.0
