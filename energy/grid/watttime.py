"""WattTime, API v3: five-minute values of a balancing authority. Needs an account.

`GET /login` with name and password gives a token for 30 minutes; `/v3/forecast` begins with the current five minutes
and `/v3/historical` gives the past. Values are pounds of CO2 per MWh, which `meta.units` must say: `/v3/signal-index`
is a percentile, and no intensity can be made of it. The signal is `co2_aoer` (average) unless the marginal one
(`co2_moer`) is asked for, which is labelled so and books no grams.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

from pydantic import BaseModel, Field

from energy.grid.http import HttpFeed, Patience, parse_time, unspoken
from energy.grid.signal import GridError, Intensity, Malformed, Measure, NoData, Refused, WrongZone, plausible, sound

GRAMS_PER_KWH_PER_LB_PER_MWH = 0.45359237
"""A pound is 453.59237 g by definition (1959), an MWh 1,000 kWh."""
UNITS = "lbs_co2_per_mwh"
TOKEN_LIFE = timedelta(minutes=25)
"""Of 30: a token that ends on its way costs a try."""
HISTORY = timedelta(hours=24)

Signal = Literal["co2_aoer", "co2_moer"]


class _Login(BaseModel):
    token: str = Field(min_length=1)


class _Point(BaseModel):
    time: str = Field(alias="point_time")
    value: float = Field(strict=True)
    imputed: bool = Field(default=False, alias="imputed_data_used")


class _Meta(BaseModel):
    region: str
    signal_type: str
    units: str
    generated_at: str | None = None


class _Answer(BaseModel):
    data: list[_Point] = Field(min_length=1)
    meta: _Meta


class WattTimeProvider:
    """Reads one region. `password` is asked for at each login, so that a file may be changed while the server runs."""

    def __init__(
        self,
        region: str,
        username: str,
        password: Callable[[], str],
        signal: Signal = "co2_aoer",
        base_url: str = "https://api.watttime.org",
        patience: Patience | None = None,
    ) -> None:
        self.name = "watttime" if signal == "co2_aoer" else "watttime_marginal"
        self.zone = region
        self._username = username
        self._password = password
        self._signal = signal
        self._measure: Measure = "average" if signal == "co2_aoer" else "marginal"
        self._feed = HttpFeed(base_url, patience or Patience())
        self._token: str | None = None
        self._token_until = self.now()

    def now(self) -> datetime:
        """The wall clock."""
        return self._feed.now()

    @unspoken
    async def latest(self) -> Intensity:
        """The current five minutes: the first of the forecast, marked `estimated`."""
        answer = await self._ask("/v3/forecast", {"horizon_hours": "0"})
        return self._reading(answer.data[0], estimated=True)

    @unspoken
    async def history(self) -> tuple[Intensity, ...]:
        """The past 24 hours."""
        now = self.now()
        span = {"start": _asked(now - HISTORY), "end": _asked(now)}
        answer = await self._ask("/v3/historical", span)
        return sound(partial(self._reading, point, estimated=point.imputed) for point in answer.data)

    @unspoken
    async def forecast(self) -> tuple[Intensity, ...]:
        """The next 24 hours."""
        answer = await self._ask("/v3/forecast", {"horizon_hours": "24"})
        issued = self.now() if answer.meta.generated_at is None else parse_time(answer.meta.generated_at)
        return sound(partial(self._ahead, point, issued) for point in answer.data)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._feed.aclose()

    async def _ask(self, path: str, more: dict[str, str]) -> _Answer:
        """A checked answer. A token that is refused is asked for anew, once."""
        params = {"region": self.zone, "signal_type": self._signal, **more}
        kept = self._token is not None and self.now() < self._token_until
        try:
            answer = await self._get(path, params, await self._logged_in())
        except Refused as error:
            if not kept or not _token_refused(error):
                raise _explained(error, self.zone) from None
            self._token = None
            try:
                answer = await self._get(path, params, await self._logged_in())
            except Refused as again:
                raise _explained(again, self.zone) from None
        meta = answer.meta
        if (meta.region, meta.signal_type) != (self.zone, self._signal):
            said = f"{meta.region[:40]!r}, {meta.signal_type[:40]!r}"
            raise WrongZone(f"asked for {self.zone}, {self._signal}, answered for {said}")
        if meta.units != UNITS:
            raise WrongZone(f"meta.units: {meta.units[:40]!r} is no intensity; {UNITS} is expected")
        return answer

    async def _get(self, path: str, params: dict[str, str], token: str) -> _Answer:
        return await self._feed.get(_Answer, path, params, {"Authorization": f"Bearer {token}"})

    async def _logged_in(self) -> str:
        """A token that is still good."""
        if self._token is not None and self.now() < self._token_until:
            return self._token
        password = self._feed.hide(self._password())
        try:
            answer = await self._feed.get(_Login, "/login", auth=(self._username, password))
        except Malformed as error:
            raise Malformed(f"/login: {error}") from None
        except Refused as error:
            raise Refused(f"/login: {error}; check grid.username and grid.secret", error.status) from None
        self._token = self._feed.hide(answer.token)
        self._token_until = self.now() + TOKEN_LIFE
        return self._token

    def _reading(self, point: _Point, *, estimated: bool) -> Intensity:
        time = parse_time(point.time)
        return Intensity(self.zone, self.name, time, _grams(point), "live", estimated, measure=self._measure)

    def _ahead(self, point: _Point, issued: datetime) -> Intensity:
        time = parse_time(point.time)
        return Intensity(self.zone, self.name, time, _grams(point), "forecast", True, issued, self._measure)


def _grams(point: _Point) -> float:
    return plausible(point.value * GRAMS_PER_KWH_PER_LB_PER_MWH)


def _asked(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%MZ}"


def _token_refused(error: Refused) -> bool:
    """Whether logging in again may help: a token that has ended is refused by a page of HTML, a plan that does not
    cover the region by JSON."""
    return error.status in (401, 403) and not error.body.lstrip().startswith("{")


def _explained(error: Refused, region: str) -> GridError:
    if error.status == 404:
        return NoData(str(error))
    if error.status == 403 and not _token_refused(error):
        return Refused(f"{error}; check whether the plan covers {region}", 403, error.body)
    return error
