"""The signal ladder: live -> cached -> forecast -> hour-of-week mean -> nothing. Never an invented number.

It stands between one provider and whoever decides by its readings: it checks every reading (age, clock,
leaps), remembers the good ones on disk, and takes the next rung when the provider gives none. The last rung
is None, which means normal quality.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from energy.grid.memory import Memory
from energy.grid.signal import GridError, GridProvider, Implausible, Intensity, Throttled, check_fresh

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Limits:
    """How old a rung may be, and which leap is none of the grid's."""

    live_max_age_s: float = 7200.0
    cached_max_age_s: float = 7200.0
    forecast_max_age_s: float = 86_400.0
    history_days: int = 28
    history_min_weeks: int = 2
    forecast_refresh_s: float = 3600.0
    """Seconds between two fetches of the forecast."""
    leap_ratio: float = 3.0
    leap_grams_per_kwh: float = 100.0
    leap_window_s: float = 3600.0
    """A reading that differs from the last good one by more than both, within the window, is refused. After
    it the reading is believed: a feed that lies for minutes is outwaited, a real change is taken in time."""


@dataclass(frozen=True)
class Outcome:
    """What the ladder found: the reading of the best rung, or None, and why better rungs gave none."""

    reading: Intensity | None
    refusals: tuple[GridError, ...] = field(default=())


class Ladder:
    """One provider behind guards and fall-backs. Not for concurrent use: one poller in the cluster."""

    def __init__(self, provider: GridProvider, limits: Limits | None = None, cache_path: Path | None = None) -> None:
        self.provider = provider
        self._limits = limits or Limits()
        self._cache_path = cache_path
        self._memory = (
            Memory(provider.name, provider.zone)
            if cache_path is None
            else Memory.load(cache_path, provider.name, provider.zone)
        )
        self._not_before: datetime | None = None
        self._forecast_tried: datetime | None = None

    async def read(self) -> Outcome:
        """The best reading there is now. Raises nothing but cancellation."""
        try:
            reading = await self._live()
        except Exception as error:
            refusal = error if isinstance(error, GridError) else GridError(f"{type(error).__name__}: {error}")
            log.warning("grid_reading_refused", provider=self.provider.name, why=type(error).__name__, said=str(error))
            return Outcome(self._fall_back(), (refusal,))
        self._memory.accept(reading, self._limits.history_days)
        await self._refresh_forecast()
        await self._persist()
        return Outcome(reading)

    async def _live(self) -> Intensity:
        if self._not_before is not None and self.provider.now() < self._not_before:
            raise Throttled(f"the provider asked to be left alone until {self._not_before:%H:%M:%S}")
        try:
            reading = await self.provider.latest()
        except Throttled as error:
            if error.retry_after_s is not None:
                self._not_before = self.provider.now() + timedelta(seconds=error.retry_after_s)
            raise
        if reading.kind == "live":
            check_fresh(reading, self.provider.now(), self._limits.live_max_age_s)
            self._check_leap(reading)
        return reading

    def _check_leap(self, reading: Intensity) -> None:
        last, limits = self._memory.last, self._limits
        if last is None or abs((reading.time - last.time).total_seconds()) >= limits.leap_window_s:
            return
        low, high = sorted((last.grams_per_kwh, reading.grams_per_kwh))
        if high > low * limits.leap_ratio and high - low > limits.leap_grams_per_kwh:
            raise Implausible(
                f"a leap from {last.grams_per_kwh:g} to {reading.grams_per_kwh:g} gCO2e/kWh within the hour"
            )

    def _fall_back(self) -> Intensity | None:
        now, limits = self.provider.now(), self._limits
        return (
            self._memory.cached(now, limits.cached_max_age_s)
            or self._memory.predicted(now, limits.forecast_max_age_s)
            or self._memory.hour_of_week_mean(now, limits.history_days, limits.history_min_weeks)
        )

    async def _refresh_forecast(self) -> None:
        now = self.provider.now()
        tried = self._forecast_tried
        if tried is not None and (now - tried).total_seconds() < self._limits.forecast_refresh_s:
            return
        self._forecast_tried = now
        try:
            self._memory.forecast = await self.provider.forecast() or self._memory.forecast
        except Exception as error:
            log.warning("grid_forecast_missing", provider=self.provider.name, said=str(error))

    async def _persist(self) -> None:
        if self._cache_path is None:
            return
        try:
            await asyncio.to_thread(self._memory.save, self._cache_path)
        except OSError as error:
            log.warning("grid_cache_not_written", path=str(self._cache_path), error=str(error))
