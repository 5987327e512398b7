"""Electricity Maps, API v3: hourly life-cycle averages of what a zone consumes, imports traced. Needs a token.

`GET /carbon-intensity/latest`, `/history` (24 hours) and `/forecast` with `zone`, and the header `auth-token`. Values
are gCO2eq/kWh, times UTC, the start of the hour; `isEstimated` is common for the latest hour. A bad token and a zone
outside the plan are both 401.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import TypeVar

from pydantic import BaseModel, Field

from energy.grid.http import HttpFeed, Patience, parse_time, unspoken
from energy.grid.signal import Intensity, NoData, Refused, WrongZone, plausible, sound

FACTORS = "lifecycle"


class _Point(BaseModel):
    carbon_intensity: float | None = Field(alias="carbonIntensity", strict=True)
    time: str = Field(alias="datetime")
    is_estimated: bool = Field(default=False, alias="isEstimated")
    factors: str = Field(default=FACTORS, alias="emissionFactorType")


class _Answer(BaseModel):
    zone: str = ""
    error: str | None = None
    """Some answers are an error with status 200."""


class _Latest(_Answer):
    carbon_intensity: float | None = Field(default=None, alias="carbonIntensity", strict=True)
    time: str = Field(default="", alias="datetime")
    is_estimated: bool = Field(default=False, alias="isEstimated")
    factors: str = Field(default=FACTORS, alias="emissionFactorType")


class _History(_Answer):
    history: list[_Point] = []


class _Forecast(_Answer):
    forecast: list[_Point] = []
    updated: str | None = Field(default=None, alias="updatedAt")


_Asked = TypeVar("_Asked", bound=_Answer)


class ElectricityMapsProvider:
    """Reads one zone. `token` is asked for at each call, so that a file may be changed while the server runs."""

    name = "electricity_maps"

    def __init__(
        self,
        zone: str,
        token: Callable[[], str],
        base_url: str = "https://api.electricitymaps.com/v3",
        patience: Patience | None = None,
    ) -> None:
        self.zone = zone
        self._token = token
        self._feed = HttpFeed(base_url, patience or Patience())

    def now(self) -> datetime:
        """The wall clock."""
        return self._feed.now()

    @unspoken
    async def latest(self) -> Intensity:
        """The newest hour that has a value, often the provider's estimate, marked so."""
        answer = await self._ask(_Latest, "latest")
        return self._reading(answer)

    @unspoken
    async def history(self) -> tuple[Intensity, ...]:
        """The past 24 hours."""
        answer = await self._ask(_History, "history")
        return sound(partial(self._reading, point) for point in answer.history)

    @unspoken
    async def forecast(self) -> tuple[Intensity, ...]:
        """The hours ahead that the plan allows, 24 as a rule."""
        answer = await self._ask(_Forecast, "forecast")
        issued = self.now() if answer.updated is None else parse_time(answer.updated)
        return sound(partial(self._ahead, point, issued) for point in answer.forecast)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._feed.aclose()

    async def _ask(self, answer: type[_Asked], what: str) -> _Asked:
        headers = {"auth-token": self._feed.hide(self._token())}
        params = {"zone": self.zone, "emissionFactorType": FACTORS}
        try:
            found = await self._feed.get(answer, f"/carbon-intensity/{what}", params, headers)
        except Refused as error:
            if error.status == 404:
                raise NoData(str(error)) from None
            if error.status == 401:
                raise Refused(f"{error}; check grid.secret and whether the plan covers {self.zone}", 401) from None
            raise
        if found.error is not None:
            raise NoData(f"the provider says: {found.error[:200]!r}")
        if found.zone != self.zone:
            raise WrongZone(f"asked for {self.zone}, answered for {found.zone[:40]!r}")
        return found

    def _reading(self, point: _Point | _Latest) -> Intensity:
        grams = self._grams(point)
        return Intensity(self.zone, self.name, parse_time(point.time), grams, "live", point.is_estimated)

    def _ahead(self, point: _Point, issued: datetime) -> Intensity:
        grams = self._grams(point)
        return Intensity(self.zone, self.name, parse_time(point.time), grams, "forecast", True, issued)

    def _grams(self, point: _Point | _Latest) -> float:
        if point.carbon_intensity is None:
            raise NoData(f"no value for {point.time or 'now'}")
        if point.factors != FACTORS:
            raise WrongZone(f"asked for {FACTORS} emission factors, answered with {point.factors[:40]!r}")
        return plausible(point.carbon_intensity)
