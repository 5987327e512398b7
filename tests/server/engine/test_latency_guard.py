"""The guard of a class's slowest percent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.latency_guard import HOLD_NS, LEAST, WINDOW, LatencyGuard

MS = 1_000_000


def guard() -> LatencyGuard:
    return LatencyGuard({"standard": 50 * MS})


def test_a_slow_percent_takes_the_class_off_cascades_for_a_minute() -> None:
    watched = guard()
    for answer in range(LEAST):
        watched.note("standard", (100 if answer % 20 == 0 else 10) * MS, answer)
    assert watched.engaged("standard", LEAST)
    assert not watched.engaged("eco", LEAST)
    assert not watched.engaged("standard", LEAST + HOLD_NS)


def test_few_slow_answers_of_a_class_or_of_another_do_not() -> None:
    watched = guard()
    for answer in range(10 * WINDOW):
        watched.note("standard", (100 if answer % 200 == 0 else 10) * MS, answer)
        watched.note("eco", 1000 * MS, answer)
    assert not watched.engaged("standard", 10 * WINDOW)


@given(st.lists(st.integers(0, 50), max_size=600))
def test_answers_within_the_bound_never_engage_it(times_ms: list[int]) -> None:
    watched = guard()
    for now, ms in enumerate(times_ms):
        watched.note("standard", ms * MS, now)
        assert not watched.engaged("standard", now)
