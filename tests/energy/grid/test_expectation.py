"""What is expected of the hours to come: the forecast, else the usual week shifted by today, else nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import exp

import pytest

from energy.grid.expectation import FORGOTTEN_IN_S, expect
from energy.grid.memory import HOUR_S
from energy.grid.signal import Intensity

NOW = datetime(2025, 3, 10, 12, 20, tzinfo=UTC)
THIS_HOUR = NOW.replace(minute=0)


def reading(time: datetime, grams: float) -> Intensity:
    return Intensity("X", "test", time, grams, "live")


@dataclass
class Known:
    """An `Outlook` of nights of 100 and days of 300 g/kWh, for so many weeks."""

    weeks: int
    reading: Intensity | None = None
    points: list[Intensity] = field(default_factory=list)

    def now(self) -> datetime:
        return NOW

    def latest(self) -> Intensity | None:
        return self.reading

    def history(self) -> Sequence[Intensity]:
        times = [THIS_HOUR - timedelta(hours=hours) for hours in range(self.weeks * 168, 0, -1)]
        return [reading(time, usual(time)) for time in times]

    def forecast(self) -> Sequence[Intensity]:
        return self.points


def usual(time: datetime) -> float:
    return 300.0 if 6 <= time.hour < 18 else 100.0


def grams_of(known: Known, hours: int) -> list[float | None]:
    return [period.grams_per_kwh for period in expect(known, NOW + timedelta(hours=hours))]


def test_without_a_forecast_the_usual_week_is_expected() -> None:
    assert grams_of(Known(4, reading(THIS_HOUR, 300.0)), 12) == [300.0] * 6 + [100.0] * 7


def test_a_windy_day_shifts_the_hours_that_are_near_more_than_those_that_are_far() -> None:
    found = grams_of(Known(4, reading(THIS_HOUR, 200.0)), 48)
    assert found[0] == 200.0
    for hour in (1, 24, 47):
        shifted = usual(THIS_HOUR + timedelta(hours=hour)) - 100.0 * exp(-hour * HOUR_S / FORGOTTEN_IN_S)
        assert found[hour] == pytest.approx(max(0.0, shifted))


def test_a_reading_of_an_earlier_hour_is_not_taken_for_this_one() -> None:
    assert grams_of(Known(4, reading(NOW.replace(hour=5, minute=0), 100.0)), 1)[0] == 300.0


def test_where_nothing_else_is_known_of_this_hour_an_earlier_reading_stands_for_it() -> None:
    assert grams_of(Known(0, reading(NOW.replace(hour=5, minute=0), 170.0)), 2) == [170.0, None, None]


def test_a_forecast_stands_before_the_usual_week() -> None:
    halves = [reading(THIS_HOUR + timedelta(minutes=30 * half), 40.0 + 10 * half) for half in range(6)]
    assert grams_of(Known(4, None, halves), 4) == [45.0, 65.0, 85.0, 300.0, 300.0]


def test_with_less_than_two_weeks_nothing_is_said_of_the_hours_to_come() -> None:
    assert grams_of(Known(1, reading(THIS_HOUR, 250.0)), 3) == [250.0, None, None, None]
    assert grams_of(Known(0), 2) == [None, None, None]


def test_the_periods_follow_one_another_from_this_hour_on() -> None:
    periods = expect(Known(2), NOW + timedelta(days=90))
    assert periods[0].start_s <= NOW.timestamp() < periods[0].end_s
    assert all(one.end_s == other.start_s for one, other in pairwise(periods))
    assert len(periods) == 62 * 24
