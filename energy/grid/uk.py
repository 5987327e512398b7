"""The UK Carbon Intensity API of NESO (Great Britain, national). No key; data CC BY 4.0.

`GET /intensity` gives the current half hour, `GET /intensity/{from}/fw24h` the next 24 hours and `/pt24h` the past
ones. Values are whole gCO2/kWh; times are UTC without seconds; `actual` is null until it is known, and the forecast
stands in.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial

from pydantic import BaseModel, ConfigDict, Field

from energy.grid.http import HttpFeed, Patience, parse_time
from energy.grid.signal import Intensity, Malformed, NoData, plausible, sound


class _Value(BaseModel):
    model_config = ConfigDict(strict=True)

    forecast: float | None = None
    actual: float | None = None


class _Period(BaseModel):
    start: str = Field(alias="from")
    intensity: _Value


class _Answer(BaseModel):
    data: list[_Period] = Field(min_length=1)


class UkProvider:
    """Reads the API."""

    name = "uk"
    zone = "GB"

    def __init__(self, base_url: str = "https://api.carbonintensity.org.uk", patience: Patience | None = None) -> None:
        self._feed = HttpFeed(base_url, patience or Patience())

    def now(self) -> datetime:
        """The wall clock."""
        return self._feed.now()

    async def latest(self) -> Intensity:
        """The current half hour: the actual value, or the forecast for it, marked `estimated`."""
        period = (await self._periods("/intensity"))[0]
        if period.intensity.actual is None and period.intensity.forecast is None:
            raise Malformed("the current half hour has neither an actual nor a forecast value")
        return self._reading(period)

    async def history(self) -> tuple[Intensity, ...]:
        """The past 24 hours by half hours."""
        periods = await self._periods(f"/intensity/{self.now():%Y-%m-%dT%H:%MZ}/pt24h")
        return sound(partial(self._reading, period) for period in periods)

    async def forecast(self) -> tuple[Intensity, ...]:
        """The next 24 hours by half hours."""
        issued = self.now()
        periods = await self._periods(f"/intensity/{issued:%Y-%m-%dT%H:%MZ}/fw24h")
        return sound(partial(self._ahead, period, issued) for period in periods)

    def _reading(self, period: _Period) -> Intensity:
        actual = period.intensity.actual
        value = period.intensity.forecast if actual is None else actual
        if value is None:
            raise NoData(f"nothing is known of {period.start}")
        return Intensity(self.zone, self.name, parse_time(period.start), plausible(value), "live", actual is None)

    def _ahead(self, period: _Period, issued: datetime) -> Intensity:
        value = period.intensity.forecast
        if value is None:
            raise NoData(f"no forecast for {period.start}")
        return Intensity(self.zone, self.name, parse_time(period.start), plausible(value), "forecast", True, issued)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._feed.aclose()

    async def _periods(self, path: str) -> list[_Period]:
        return (await self._feed.get(_Answer, path)).data
