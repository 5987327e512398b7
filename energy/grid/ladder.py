"""The signal ladder: live -> cached -> forecast -> hour-of-week mean -> nothing. Never an invented number.

It stands between one provider and whoever decides by its readings: it checks every reading (age, clock,
leaps), remembers the good ones on disk, and takes the next rung when the provider gives none. The last rung
is None, which means normal quality.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import structlog

from energy.grid.leaps import LeapGuard, LeapLimits, Reference
from energy.grid.memory import Memory
from energy.grid.nowcast import nowcast
from energy.grid.signal import GridError, GridProvider, Implausible, Intensity, Throttled, check_fresh

log = structlog.get_logger(__name__)

LONGEST_SILENCE_S = 3600.0
"""A provider that asks for more is asked again after so long: a proxy's "next year" would end the feed for good."""
PAST_DAYS = 2.0
"""A reading without a recent one beside it is measured against so many days."""


@dataclass(frozen=True)
class Limits:
    """How old a rung may be, and which leap is none of the grid's."""

    live_max_age_s: float = 7200.0
    cached_max_age_s: float = 7200.0
    forecast_max_age_s: float = 86_400.0
    history_days: int = 28
    history_min_weeks: int = 2
    refresh_s: float = 3600.0
    """Seconds between two fetches of the forecast, and of the history until it was had."""
    leaps: LeapLimits = field(default_factory=LeapLimits)


@dataclass(frozen=True)
class Outcome:
    """What the ladder found: the reading of the best rung, or None, and why better rungs gave none."""

    reading: Intensity | None
    refusals: tuple[GridError, ...] = field(default=())


class Outlook(Protocol):
    """What is known of the grid without asking anybody: for whoever plans by it. Nothing here does I/O or raises."""

    def now(self) -> datetime:
        """The time on the grid's clock (UTC): a replay's is the recording's."""

    def latest(self) -> Intensity | None:
        """The reading in force, by the best rung at the last look; None if nothing is known."""

    def history(self) -> Sequence[Intensity]:
        """Hourly means of the trailing weeks, as far as they are known, oldest first."""

    def forecast(self) -> Sequence[Intensity]:
        """The newest forecast that is not too old, from now on, oldest first; `issued` is set. Empty if there is none.
        Each value holds until the next one."""


class Ladder:
    """One provider behind guards and fall-backs; an `Outlook`. Not for concurrent use: one poller in the cluster."""

    def __init__(self, provider: GridProvider, limits: Limits | None = None, cache_path: Path | None = None) -> None:
        self.provider = provider
        self.refused: Counter[str] = Counter()
        """How many looks gave no reading of the provider's, by the name of the error."""
        self._limits = limits or Limits()
        self._cache_path = cache_path
        self._memory = (
            Memory(provider.name, provider.zone)
            if cache_path is None
            else Memory.load(cache_path, provider.name, provider.zone)
        )
        self._leaps = LeapGuard(self._limits.leaps)
        self._latest: Intensity | None = None
        self._not_before: datetime | None = None
        self._forecast_tried: datetime | None = None
        self._history_tried: datetime | None = None
        self._history_had = False

    def now(self) -> datetime:
        """See `Outlook`."""
        return self.provider.now()

    def latest(self) -> Intensity | None:
        """See `Outlook`."""
        return self._latest

    def expected_now(self) -> float | None:
        """What a late reading lets one expect of now, gCO2e/kWh; None where the reading stands for now as it is."""
        return None if self._latest is None else nowcast(self._latest, self._memory.mean_of, self.now())

    def history(self) -> Sequence[Intensity]:
        """See `Outlook`."""
        return self._memory.past()

    def forecast(self) -> Sequence[Intensity]:
        """See `Outlook`."""
        return self._memory.ahead(self.now(), self._limits.forecast_max_age_s)

    def learn(self, past: Iterable[Intensity]) -> None:
        """Take readings of before for the hours that nothing is known of."""
        self._memory.learn(past, self._limits.history_days, self.now())

    async def read(self) -> Outcome:
        """The best reading there is now. Raises nothing but cancellation."""
        outcome = await self._read()
        self._latest = outcome.reading
        return outcome

    async def _read(self) -> Outcome:
        try:
            reading = await self._live()
        except Exception as error:
            refusal = error if isinstance(error, GridError) else GridError(f"{type(error).__name__}: {error}")
            self.refused[type(refusal).__name__] += 1
            log.warning("grid_reading_refused", provider=self.provider.name, why=type(error).__name__, said=str(error))
            return Outcome(self._fall_back(), (refusal,))
        self._memory.accept(reading, self._limits.history_days)
        await self._refresh_forecast()
        await self._persist()
        return Outcome(reading)

    async def _live(self) -> Intensity:
        # More than was ever set means that the clock was put back.
        until = self._not_before
        if until is not None and 0 < (until - self.now()).total_seconds() <= LONGEST_SILENCE_S:
            raise Throttled(f"the provider asked to be left alone until {until:%H:%M:%S}")
        try:
            reading = await self.provider.latest()
        except Throttled as error:
            if error.retry_after_s is not None:
                self._not_before = self.now() + timedelta(seconds=min(error.retry_after_s, LONGEST_SILENCE_S))
            raise
        if reading.kind == "live":
            check_fresh(reading, self.now(), self._limits.live_max_age_s)
            await self._learn_history()
            self._check_leap(reading)
        return reading

    def _check_leap(self, reading: Intensity) -> None:
        memory = self._memory
        reference = Reference(memory.last, memory.trusted, memory.span(self.now(), PAST_DAYS))
        try:
            memory.trusted = self._leaps.check(reading, self.now(), reference)
        except Implausible:
            if not memory.trusted:
                memory.retract()
            raise

    def _fall_back(self) -> Intensity | None:
        now, limits = self.now(), self._limits
        return (
            self._memory.cached(now, limits.cached_max_age_s)
            or self._memory.predicted(now, limits.forecast_max_age_s)
            or self._memory.hour_of_week_mean(now, limits.history_days, limits.history_min_weeks)
        )

    async def _learn_history(self) -> None:
        """What the provider knows of the past day, once: a first reading can then be measured, and the hour-of-week
        mean has a start."""
        if self._history_had or not self._due(self._history_tried):
            return
        self._history_tried = self.now()
        try:
            self._memory.learn(await self.provider.history(), self._limits.history_days, self.now())
            self._history_had = True
        except Exception as error:
            log.warning("grid_history_missing", provider=self.provider.name, said=str(error))

    async def _refresh_forecast(self) -> None:
        if not self._due(self._forecast_tried):
            return
        self._forecast_tried = self.now()
        try:
            self._memory.forecast = await self.provider.forecast() or self._memory.forecast
        except Exception as error:
            log.warning("grid_forecast_missing", provider=self.provider.name, said=str(error))

    def _due(self, tried: datetime | None) -> bool:
        # The clock may be set back, and a replay starts over.
        return tried is None or not 0 <= (self.now() - tried).total_seconds() < self._limits.refresh_s

    async def _persist(self) -> None:
        if self._cache_path is None:
            return
        try:
            await asyncio.to_thread(self._memory.save, self._cache_path)
        except OSError as error:
            log.warning("grid_cache_not_written", path=str(self._cache_path), error=str(error))
