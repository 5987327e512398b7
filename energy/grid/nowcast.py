"""What a late reading means for now: providers publish an hour or two after the fact. Pure.

The reading is brought to the present by what the grid changed, on average over the past fortnight, between those two
hours of the day. On 14 recordings that leaves 0.3 to 0.9 of the error (root mean square) that a reading two hours old
has as it is; one day's change instead of 14 made it worse in four of them. The change that the newest day-ahead
forecast expects is better in 3 regions of 12 and worse in the others, so it is not asked.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from energy.grid.signal import Intensity

DAYS, LEAST_DAYS = 14, 3
HOUR_S, HOURS_PER_DAY = 3600, 24
LATE_AFTER_S = 3600.0
"""An hourly reading holds for its hour; after that it is late."""


def nowcast(reading: Intensity, hourly: Callable[[int], float | None], now: datetime) -> float | None:
    """What a late reading lets one expect of now, gCO2e/kWh; None where it is not late or the past is too short.

    `hourly` gives the mean of an hour since the epoch, None where it is unknown. Forecasts and hour-of-week means are
    of now already.
    """
    if reading.kind not in ("live", "cached") or reading.age_s(now) < LATE_AFTER_S:
        return None
    this_hour, read_hour = int(now.timestamp()) // HOUR_S, int(reading.time.timestamp()) // HOUR_S
    changes = []
    for day in range(1, DAYS + 1):
        then, after = hourly(read_hour - day * HOURS_PER_DAY), hourly(this_hour - day * HOURS_PER_DAY)
        if then is not None and after is not None:
            changes.append(after - then)
    if len(changes) < LEAST_DAYS:
        return None
    return max(0.0, reading.grams_per_kwh + sum(changes) / len(changes))
