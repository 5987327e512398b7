"""What to expect of the grid in the hours to come, by what is known of it now. Pure.

An hour's intensity is the forecast's where it covers it, else the trailing mean of that hour of the week. The mean is
the usual week, and this one may be windier: so the usual hour is shifted by what the grid is off its usual now, and
less so the farther the hour is (the best guess of a process that forgets its deviation exponentially). Where there is
neither, nothing is said; a reading that is of this very hour stands for it.

Measured on 2020's hours (a job every few hours, deadlines of 8, 24 and 72 hours): shifted, the choice saves 76 to 80 %
of what perfect foresight would in DE, 86 to 90 % in CISO and 52 to 66 % in BPAT; unshifted 29 to 46, 58 to 63 and 18 to
29 %. Any time from 12 to 96 hours to forget in does about as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from math import exp

from energy.grid.ladder import Outlook
from energy.grid.memory import HOUR_S, HOURS_PER_WEEK
from energy.grid.signal import Intensity
from energy.grid.windows import Period

FORGOTTEN_IN_S = 24 * 3600.0
"""Time in which a deviation from the usual week shrinks to 1/e."""
WEEKS, LEAST_WEEKS = 4, 2
MAX_HOURS = 24 * 62


def expect(known: Outlook, until: datetime) -> tuple[Period, ...]:
    """Hourly periods from this hour to `until` (at most 62 days), oldest first."""
    reading, now_hour = known.latest(), _hour(known.now())
    count = min(MAX_HOURS, max(1, -(-int(until.timestamp()) // HOUR_S) - now_hour))
    foretold = _hourly(known.forecast())
    past = _hourly(known.history())
    read_hour = now_hour if reading is None else _hour(reading.time)
    usual_then = _usual(past, read_hour)
    off = 0.0 if reading is None or usual_then is None else reading.grams_per_kwh - usual_then
    periods = []
    for hour in range(now_hour, now_hour + count):
        grams = foretold.get(hour)
        if grams is None and (usual := _usual(past, hour)) is not None:
            grams = max(0.0, usual + off * exp(-abs(hour - read_hour) * HOUR_S / FORGOTTEN_IN_S))
        if hour == now_hour and reading is not None and (grams is None or read_hour == now_hour):
            grams = reading.grams_per_kwh
        periods.append(Period(hour * HOUR_S, (hour + 1) * HOUR_S, grams))
    return tuple(periods)


def _usual(past: Mapping[int, float], hour: int) -> float | None:
    """Mean of the same hour in the last weeks; None where fewer than two of them are known."""
    found = [past[before] for week in range(1, WEEKS + 1) if (before := hour - week * HOURS_PER_WEEK) in past]
    return sum(found) / len(found) if len(found) >= LEAST_WEEKS else None


def _hourly(points: Iterable[Intensity]) -> dict[int, float]:
    """Hours -> the mean of their values."""
    sums: dict[int, tuple[float, int]] = {}
    for point in points:
        total, count = sums.get(_hour(point.time), (0.0, 0))
        sums[_hour(point.time)] = (total + point.grams_per_kwh, count + 1)
    return {hour: total / count for hour, (total, count) in sums.items()}


def _hour(time: datetime) -> int:
    return int(time.timestamp()) // HOUR_S
