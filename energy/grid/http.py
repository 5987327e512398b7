"""What the providers that ask over HTTP have in common: a bounded GET, its tries, and typed errors.

Nothing of a request is ever put into an error or a log: headers carry keys. What a provider answers is quoted, with
every key blotted out that it may have repeated.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random, wait_random_exponential

from energy.grid.signal import GridError, Malformed, ProviderFailed, Refused, Throttled, Unreachable, parse_utc
from energy.grid.static import utc_now

MAX_BODY_BYTES = 1_000_000
MAX_WAIT_S = 8.0
"""Longest pause between two tries of one poll; a provider that asks for more is left alone until then."""
SAID_CHARS = 200
TELLING_CHARS = 12
"""What begins like a key for so long is taken for it."""

Answer = TypeVar("Answer", bound=BaseModel)
Found = TypeVar("Found")
Ask = Callable[[Any], Coroutine[Any, Any, Found]]
Auth = tuple[str, str]


@dataclass(frozen=True)
class Patience:
    """How long and how often to ask, and the clocks that tests turn."""

    timeout_s: float = 10.0
    """For one try as a whole, connecting and reading together."""
    max_attempts: int = 3
    clock: Callable[[], datetime] = utc_now
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class HttpFeed:
    """GETs from one base URL. Not for concurrent use."""

    def __init__(self, base_url: str, patience: Patience) -> None:
        self._base_url = base_url.rstrip("/")
        self._patience = patience
        self._client: httpx.AsyncClient | None = None
        self._secrets: set[str] = set()

    def hide(self, secret: str) -> str:
        """Never quote `secret`; returns it."""
        if secret:
            self._secrets.add(secret)
        return secret

    def now(self) -> datetime:
        """The wall clock."""
        return self._patience.clock()

    async def get(
        self,
        answer: type[Answer],
        path: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: Auth | None = None,
    ) -> Answer:
        """The parsed body, after at most `max_attempts` tries and the pauses between them. Raises GridError."""
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._patience.max_attempts),
            retry=retry_if_exception(_worth_retrying),
            wait=_pause_s,
            sleep=self._patience.sleep,
            reraise=True,
        )
        return await retrying(self._fetch, answer, path, params, headers, auth)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _fetch(
        self,
        answer: type[Answer],
        path: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        auth: Auth | None,
    ) -> Answer:
        timeout_s = self._patience.timeout_s
        if self._client is None:
            self._client = httpx.AsyncClient(headers={"Accept": "application/json"}, timeout=timeout_s)
        try:
            # httpx bounds each read; a body that drips in byte by byte needs a bound on the whole.
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream(
                    "GET", self._base_url + path, params=params, headers=headers, auth=auth
                ) as response,
            ):
                body = await _body(response)
        except TimeoutError:
            raise Unreachable(f"no whole answer within {timeout_s:g} s") from None
        except httpx.TimeoutException as error:
            raise Unreachable(f"no answer within {timeout_s:g} s ({type(error).__name__})") from None
        except (httpx.LocalProtocolError, UnicodeEncodeError):  # what they say quotes the header, and the key in it
            raise Refused(
                "a key or name holds what no header can carry; give it without line breaks, in ASCII"
            ) from None
        except httpx.RemoteProtocolError:  # likewise of what came, in which a key may be repeated
            raise Malformed("the answer broke off, or is not HTTP") from None
        except httpx.InvalidURL as error:
            raise Refused(f"{error}; mend grid.base_url") from None
        except httpx.HTTPError as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from None
        if response.status_code != 200:
            raise _failure(response, self.blotted(body.decode("utf-8", "replace"))[:SAID_CHARS], self.now())
        return _parse(answer, body)

    def blotted(self, text: str) -> str:
        """The text without the keys in it, those that are cut off included."""
        for secret in self._secrets:
            text = re.sub(re.escape(secret[:TELLING_CHARS]) + r"\S*", "***", text)
        return text


def unspoken(ask: Ask[Found]) -> Ask[Found]:
    """A provider's method, none of whose errors tells a key: a provider may repeat it in any field that is quoted."""

    @wraps(ask)
    async def asked(provider: Any) -> Found:
        try:
            return await ask(provider)
        except GridError as error:
            error.args = tuple(provider._feed.blotted(str(part)) for part in error.args)
            raise

    return asked


async def _body(response: httpx.Response) -> bytes:
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Malformed(f"the body exceeds {MAX_BODY_BYTES} bytes")
    return body


def _failure(response: httpx.Response, quote: str, now: datetime) -> GridError:
    status = response.status_code
    said = f"status {status}: {quote!r}"
    if status == 429:
        return Throttled(said, _retry_after_s(response.headers.get("Retry-After"), now))
    return ProviderFailed(said) if status >= 500 else Refused(said, status, quote)


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


def _parse(answer: type[Answer], body: bytes) -> Answer:
    try:
        return answer.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise Malformed(f"{where}: {first['msg']}") from None


def parse_time(text: str) -> datetime:
    """A time in a body. Raises Malformed."""
    try:
        return parse_utc(text)
    except ValueError:
        raise Malformed(f"{text[:40]!r} is no time") from None


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
