"""What the ladder remembers of a zone: the last good reading, the last forecast, hourly means for the
trailing weeks.

Kept on disk so that a restart during an outage still has every rung.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog

from energy.grid.signal import FUTURE_TOLERANCE_S, GridError, Intensity, format_utc, parse_utc

log = structlog.get_logger(__name__)

HOUR_S = 3600
HOURS_PER_WEEK = 168
LEAST_HOURS = 6
FORECAST_PERIOD = timedelta(hours=1)
"""A forecast's value holds until its next one, but no longer than this."""


@dataclass
class Memory:
    """Readings of one provider and zone. `hours` maps an hour since the epoch to (sum, count) of its
    readings."""

    provider: str
    zone: str
    last: Intensity | None = None
    trusted: bool = False
    """Whether something speaks for `last` but itself."""
    forecast: tuple[Intensity, ...] = ()
    hours: dict[int, tuple[float, int]] = field(default_factory=dict)

    def accept(self, reading: Intensity, keep_days: int) -> None:
        """Remember a good reading and forget hours older than `keep_days` before it."""
        hour = int(reading.time.timestamp()) // HOUR_S
        if self.last is None or reading.time != self.last.time:
            total, count = self.hours.get(hour, (0.0, 0))
            self.hours[hour] = (total + reading.grams_per_kwh, count + 1)
        if self.last is None or self.last.time < reading.time:
            oldest = hour - keep_days * 24
            for old in [h for h in self.hours if h < oldest]:
                del self.hours[old]
        self.last = reading

    def learn(self, past: Iterable[Intensity], keep_days: int, now: datetime) -> None:
        """Take the provider's own past for the hours that nothing is known of. What is dated after `now` is none: it
        would push the hours that are known out of the trailing days."""
        known = set(self.hours)
        for reading in past:
            if reading.age_s(now) < -FUTURE_TOLERANCE_S:
                continue
            hour = int(reading.time.timestamp()) // HOUR_S
            if hour not in known:
                total, count = self.hours.get(hour, (0.0, 0))
                self.hours[hour] = (total + reading.grams_per_kwh, count + 1)
        if self.hours:
            oldest = max(self.hours) - keep_days * 24
            self.hours = {hour: value for hour, value in self.hours.items() if hour >= oldest}

    def retract(self) -> None:
        """Forget the last reading: it was none of the grid's."""
        if self.last is not None:
            self.hours.pop(int(self.last.time.timestamp()) // HOUR_S, None)
        self.last, self.trusted = None, False

    def span(self, now: datetime, days: float) -> tuple[float, float] | None:
        """Least and most of the hourly means of the trailing `days`; None with fewer than `LEAST_HOURS` of them."""
        hour = int(now.timestamp()) // HOUR_S
        means = [total / count for h, (total, count) in self.hours.items() if hour - days * 24 <= h < hour]
        return (min(means), max(means)) if len(means) >= LEAST_HOURS else None

    def past(self) -> tuple[Intensity, ...]:
        """The hourly means, oldest first."""
        return tuple(
            Intensity(self.zone, self.provider, datetime.fromtimestamp(hour * HOUR_S, UTC), total / count, "live")
            for hour, (total, count) in sorted(self.hours.items())
        )

    def mean_of(self, hour: int) -> float | None:
        """Mean of an hour since the epoch; None where nothing is known of it."""
        total, count = self.hours.get(hour, (0.0, 0))
        return total / count if count else None

    def predicted(self, now: datetime, max_age_s: float) -> Intensity | None:
        """The forecast's value for `now`, if one covers it that was issued at most `max_age_s` ago."""
        covering = [p for p in self.forecast if p.time <= now < p.time + FORECAST_PERIOD]
        if not covering or covering[-1].issued is None:
            return None
        age_s = (now - covering[-1].issued).total_seconds()
        return covering[-1] if age_s <= max_age_s else None

    def ahead(self, now: datetime, max_age_s: float) -> tuple[Intensity, ...]:
        """The forecast from the period that covers `now` on, if it was issued at most `max_age_s` ago."""
        return tuple(
            point
            for point in self.forecast
            if point.issued is not None
            and (now - point.issued).total_seconds() <= max_age_s
            and point.time + FORECAST_PERIOD > now
        )

    def hour_of_week_mean(self, now: datetime, days: int, at_least: int) -> Intensity | None:
        """Mean of the same hour of the week over the trailing `days`; None with fewer than `at_least`
        weeks."""
        hour = int(now.timestamp()) // HOUR_S
        weeks = range(1, days // 7 + 1)
        found = [self.hours[h] for w in weeks if (h := hour - w * HOURS_PER_WEEK) in self.hours]
        if len(found) < at_least:
            return None
        mean = sum(total / count for total, count in found) / len(found)
        start = datetime.fromtimestamp(hour * HOUR_S, UTC)
        return Intensity(self.zone, self.provider, start, mean, "hour_of_week_mean", estimated=True)

    def save(self, path: Path) -> None:
        """Write to `path` so that a reader sees the old or the new content. Raises OSError."""
        data = {
            "provider": self.provider,
            "zone": self.zone,
            "last": None if self.last is None else self.last.to_dict(),
            "trusted": self.trusted,
            "forecast": [point.to_dict() for point in self.forecast],
            "hours": {format_utc(datetime.fromtimestamp(h * HOUR_S, UTC)): list(v) for h, v in self.hours.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w") as stream:
                json.dump(data, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise

    @classmethod
    def load(cls, path: Path, provider: str, zone: str) -> Memory:
        """What `path` holds of this provider and zone; empty if it is missing, damaged or of another zone."""
        try:
            data: dict[str, Any] = json.loads(path.read_bytes())
            if (data["provider"], data["zone"]) != (provider, zone):
                return cls(provider, zone)
            return cls(
                provider,
                zone,
                None if data["last"] is None else Intensity.from_dict(data["last"]),
                bool(data.get("trusted", False)),
                tuple(Intensity.from_dict(point) for point in data["forecast"]),
                {_hour(text): (float(total), int(count)) for text, (total, count) in data["hours"].items()},
            )
        except FileNotFoundError:
            return cls(provider, zone)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, GridError) as error:
            log.warning("grid_cache_ignored", path=str(path), error=str(error))
            return cls(provider, zone)

    def cached(self, now: datetime, max_age_s: float) -> Intensity | None:
        """The last good reading, as `cached`, if it is at most `max_age_s` old."""
        if self.last is None or not 0 <= self.last.age_s(now) <= max_age_s:
            return None
        return replace(self.last, kind="cached")


def _hour(text: str) -> int:
    return int(parse_utc(text).timestamp()) // HOUR_S
