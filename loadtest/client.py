"""A closed-loop HTTP client: N clients, each sends its next request when the last one is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

import aiohttp
import orjson

REQUEST_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Question:
    """One request: a text, the class it is asked in, and its label where one is known."""

    text: str
    quality: str = "standard"
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `status` 0 means that no reply came, or one that is none of `/predict`."""

    question: Question
    status: int
    sent_s: float
    latency_s: float
    label: str | None = None
    point: str = ""
    variant: str = ""
    cache: str = ""
    reason: str = ""
    joules: float | None = None

    @property
    def correct(self) -> bool | None:
        """Whether the label is the right one; None if it is not known."""
        return None if self.question.label is None else self.label == self.question.label


@dataclass
class Run:
    """Replies of one run and how long it took."""

    replies: list[Reply] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def answered(self) -> list[Reply]:
        """Replies with status 200."""
        return [reply for reply in self.replies if reply.status == 200]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank); NaN for no values."""
    if not values:
        return float("nan")
    return sorted(values)[max(0, ceil(share * len(values)) - 1)]


async def ask(session: aiohttp.ClientSession, url: str, question: Question) -> Reply:
    """Send one question. Never raises for what the server or the network does."""
    body = orjson.dumps({"inputs": question.text, "truncate": True})
    headers = {"content-type": "application/json", "x-quality": question.quality}
    sent = time.perf_counter()
    try:
        async with session.post(url, data=body, headers=headers) as response:
            content = await response.read()
            latency = time.perf_counter() - sent
            if response.status != 200:
                return Reply(question, response.status, sent, latency)
            said = response.headers
            joules = said.get("x-jouleserve-joules")
            return Reply(
                question,
                200,
                sent,
                latency,
                label=orjson.loads(content)[0]["label"],
                point=said.get("x-jouleserve-point", ""),
                variant=said.get("x-jouleserve-variant", ""),
                cache=said.get("x-jouleserve-cache", ""),
                reason=said.get("x-jouleserve-reason", ""),
                joules=None if joules is None else float(joules),
            )
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError, LookupError, TypeError):
        return Reply(question, 0, sent, time.perf_counter() - sent)


async def closed_loop(
    url: str,
    questions: Iterator[Question],
    clients: int,
    stop: Callable[[], bool] = lambda: False,
    on_reply: Callable[[Reply], None] = lambda reply: None,
    pause_s: float = 0.0,
) -> Run:
    """Send `questions` through `clients` connections until they run out or `stop` says so."""
    run = Run()
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=clients)

    async def one(session: aiohttp.ClientSession) -> None:
        for question in questions:
            if stop():
                return
            reply = await ask(session, url, question)
            run.replies.append(reply)
            on_reply(reply)
            if pause_s:
                await asyncio.sleep(pause_s)

    started = time.perf_counter()
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        await asyncio.gather(*(one(session) for _ in range(clients)))
    run.wall_s = time.perf_counter() - started
    return run
