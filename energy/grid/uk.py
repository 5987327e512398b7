"""The UK Carbon Intensity API of NESO (Great Britain, national). No key; data CC BY 4.0.

`GET /intensity` gives the current half hour, `GET /intensity/{from}/fw24h` the next 24 hours. Values are
whole gCO2/kWh; times are UTC without seconds; `actual` is null until it is known, and the forecast stands in.
"""

from __future__ import annotations

import asyncio
import email.utils
from collections.abc import Awaitable, Callable
from datetime import datetime

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random, wait_random_exponential

from energy.grid.signal import (
    GridError,
    Intensity,
    Malformed,
    ProviderFailed,
    Refused,
    Throttled,
    Unreachable,
    parse_utc,
    plausible,
)
from energy.grid.static import utc_now

MAX_BODY_BYTES = 1_000_000
MAX_WAIT_S = 8.0
"""Longest pause between two tries of one poll; a provider that asks for more is left alone until then."""


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
    """Reads the API. A call takes at most `max_attempts` tries of `timeout_s` and the pauses between."""

    name = "uk"
    zone = "GB"

    def __init__(
        self,
        base_url: str = "https://api.carbonintensity.org.uk",
        timeout_s: float = 10.0,
        max_attempts: int = 3,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._clock = clock
        self._sleep = sleep
        self._client: httpx.AsyncClient | None = None

    def now(self) -> datetime:
        """The wall clock."""
        return self._clock()

    async def latest(self) -> Intensity:
        """The current half hour: the actual value, or the forecast for it, marked `estimated`."""
        period = (await self._periods("/intensity"))[0]
        actual = period.intensity.actual
        value = period.intensity.forecast if actual is None else actual
        if value is None:
            raise Malformed("the current half hour has neither an actual nor a forecast value")
        return Intensity(self.zone, self.name, _time(period.start), plausible(value), "live", estimated=actual is None)

    async def forecast(self) -> tuple[Intensity, ...]:
        """The next 24 hours by half hours."""
        issued = self.now()
        periods = await self._periods(f"/intensity/{issued:%Y-%m-%dT%H:%MZ}/fw24h")
        return tuple(
            Intensity(self.zone, self.name, _time(p.start), plausible(value), "forecast", True, issued)
            for p in periods
            if (value := p.intensity.forecast) is not None
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _periods(self, path: str) -> list[_Period]:
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._max_attempts),
            retry=retry_if_exception(_worth_retrying),
            wait=_pause_s,
            sleep=self._sleep,
            reraise=True,
        )
        return await retrying(self._fetch, path)

    async def _fetch(self, path: str) -> list[_Period]:
        if self._client is None:
            self._client = httpx.AsyncClient(headers={"Accept": "application/json"}, timeout=self._timeout_s)
        try:
            # httpx bounds each read; a body that drips in byte by byte needs a bound on the whole.
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("GET", self._base_url + path) as response,
            ):
                body = await _body(response)
        except TimeoutError:
            raise Unreachable(f"no whole answer within {self._timeout_s:g} s") from None
        except httpx.TimeoutException as error:
            raise Unreachable(f"no answer within {self._timeout_s:g} s ({type(error).__name__})") from None
        except httpx.RemoteProtocolError as error:
            raise Malformed(f"the answer broke off: {error}") from None
        except httpx.HTTPError as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from None
        _check_status(response, body, self.now())
        return _parse(body)


async def _body(response: httpx.Response) -> bytes:
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Malformed(f"the body exceeds {MAX_BODY_BYTES} bytes")
    return body


def _check_status(response: httpx.Response, body: bytes, now: datetime) -> None:
    status = response.status_code
    if status == 200:
        return
    said = f"status {status}: {body[:200].decode('utf-8', 'replace')!r}"
    if status == 429:
        raise Throttled(said, _retry_after_s(response.headers.get("Retry-After"), now))
    raise ProviderFailed(said) if status >= 500 else Refused(said)


def _retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds that the header asks for, as a number or an HTTP date. None if it says neither."""
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(header) - now).total_seconds())
    except (ValueError, TypeError):
        return None


def _parse(body: bytes) -> list[_Period]:
    try:
        return _Answer.model_validate_json(body).data
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise Malformed(f"{where}: {first['msg']}") from None


def _time(text: str) -> datetime:
    try:
        return parse_utc(text)
    except ValueError:
        raise Malformed(f"{text!r} is no time") from None


def _worth_retrying(error: BaseException) -> bool:
    if isinstance(error, Throttled) and (error.retry_after_s or 0) > MAX_WAIT_S:
        return False
    return isinstance(error, GridError) and error.transient


def _pause_s(state: RetryCallState) -> float:
    """Random within a growing bound, so that pollers do not return in step; at least what a 429 asks for."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Throttled) and error.retry_after_s is not None:
        return error.retry_after_s + wait_random(0, 1)(state)
    return wait_random_exponential(multiplier=0.5, max=MAX_WAIT_S)(state)
