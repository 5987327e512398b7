"""A late reading is brought to now by what the grid usually changes between those hours of the day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import pi, sin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.grid.nowcast import LEAST_DAYS, nowcast
from energy.grid.signal import Intensity, Kind

NOW = datetime(2025, 3, 10, 12, 20, tzinfo=UTC)


def reading(age_h: float, grams: float, kind: Kind = "live") -> Intensity:
    return Intensity("Z", "test", NOW - timedelta(hours=age_h), grams, kind)


def daily(hour: int) -> float:
    """A grid whose every day is the same."""
    return 300 + 100 * sin(2 * pi * (hour % 24) / 24)


def hour_of(moment: datetime) -> int:
    return int(moment.timestamp()) // 3600


@given(st.floats(1, 23), st.floats(-150, 150))
def test_on_a_grid_of_equal_days_it_is_exact_whatever_the_day_is_off(age_h: float, off: float) -> None:
    late = reading(age_h, daily(hour_of(NOW - timedelta(hours=age_h))) + off)
    assert nowcast(late, daily, NOW) == pytest.approx(daily(hour_of(NOW)) + off)


@given(st.floats(0, 3000), st.lists(st.none() | st.floats(0, 3000), min_size=400, max_size=400))
def test_it_is_never_below_zero_and_never_made_of_too_few_days(grams: float, hours: list[float | None]) -> None:
    first = hour_of(NOW) - len(hours)
    found = nowcast(reading(2, grams), lambda hour: hours[hour - first] if hour < hour_of(NOW) else None, NOW)
    assert found is None or found >= 0
    pairs = [(hours[-24 * day], hours[-24 * day - 2]) for day in range(1, 15)]
    assert (found is None) == (sum(None not in pair for pair in pairs) < LEAST_DAYS)


@pytest.mark.parametrize("kind", ["forecast", "hour_of_week_mean", "static", "replay"])
def test_what_is_for_now_already_stands(kind: Kind) -> None:
    assert nowcast(reading(2, 300, kind), daily, NOW) is None


def test_a_reading_stands_for_its_hour() -> None:
    assert nowcast(reading(0.99, 300), daily, NOW) is None
    assert nowcast(reading(1.0, 300), daily, NOW) is not None


def test_without_a_past_a_late_reading_stands_as_it_is() -> None:
    assert nowcast(reading(2, 300), lambda hour: None, NOW) is None
