"""What every standing-up test needs: figures against limits, a client that retries once, counters that may not fall."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx
import orjson
from rich.console import Console
from rich.table import Table

from loadtest.client import Question
from loadtest.demo_tables import Labels, read_metrics
from loadtest.served import Served

TIMEOUT_S = 30.0
RETRY_AFTER_S = 1.0
_CUMULATIVE = ("_total", "_count", "_sum", "_bucket")


@dataclass(frozen=True)
class Figure:
    """One figure and what was asked of it."""

    case: str
    name: str
    value: str
    limit: str
    met: bool


def at_most(case: str, name: str, value: float, limit: float, unit: str = "") -> Figure:
    """A figure that must not exceed `limit`. NaN misses."""
    return Figure(case, name, f"{value:.4g}{unit}", f"<= {limit:g}{unit}", value <= limit)


def at_least(case: str, name: str, value: float, limit: float, unit: str = "") -> Figure:
    """A figure that must reach `limit`. NaN misses."""
    return Figure(case, name, f"{value:.6g}{unit}", f">= {limit:g}{unit}", value >= limit)


def only(case: str, name: str, found: Mapping[int, int], allowed: set[int]) -> Figure:
    """Statuses, none of which may be outside `allowed`."""
    shown = ", ".join(f"{status}: {count:,}" for status, count in sorted(found.items()))
    return Figure(case, name, shown, f"only {', '.join(map(str, sorted(allowed)))}", set(found) <= allowed)


def show(console: Console, figures: Sequence[Figure]) -> bool:
    """Print the table; True if every figure met its limit."""
    table = Table("case", "figure", "measured", "wanted", "")
    for figure in figures:
        table.add_row(figure.case, figure.name, figure.value, figure.limit, "met" if figure.met else "MISSED")
    console.print(table)
    return all(figure.met for figure in figures)


@dataclass
class Answer:
    """A reply read as far as it says which version gave which scores."""

    text: str
    sent_s: float
    """By `time.perf_counter`."""
    status: int = 0
    tries: int = 0
    version: str = ""
    scores: dict[str, float] = field(default_factory=dict)


async def ask(
    session: aiohttp.ClientSession, url: str, question: Question, retries: int = 0, truncate: bool = True
) -> Answer:
    """Ask; where no answer comes, or 429 or 503, wait as long as Retry-After says (else a second) and ask again, at
    most `retries` times. Never raises for what the server does."""
    body = orjson.dumps({"inputs": question.text, "truncate": truncate})
    headers = {"content-type": "application/json", "x-quality": question.quality}
    answer = Answer(question.text, time.perf_counter())
    while True:
        answer.tries += 1
        wait_s = RETRY_AFTER_S
        try:
            async with session.post(url, data=body, headers=headers) as response:
                content = await response.read()
                answer.status = response.status
                if response.status == 200:
                    answer.version = response.headers.get("x-jouleserve-version", "")
                    answer.scores = {row["label"]: row["score"] for row in orjson.loads(content)}
                    return answer
                wait_s = float(response.headers.get("retry-after", RETRY_AFTER_S))
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, LookupError, TypeError):
            answer.status = 0
        if answer.tries > retries or answer.status not in (0, 429, 503):
            return answer
        await asyncio.sleep(wait_s)


async def ask_steadily(
    url: str,
    questions: Iterator[Question],
    clients: int,
    stop: Callable[[], bool],
    *,
    retries: int = 0,
    pause_s: float = 0.0,
    keep_alive: bool = True,
    truncate: bool = True,
) -> list[Answer]:
    """A closed loop of `clients` until `stop` says so or the questions run out."""
    answers: list[Answer] = []
    connector = aiohttp.TCPConnector(limit=0, force_close=not keep_alive)

    async def one(session: aiohttp.ClientSession) -> None:
        for question in questions:
            if stop():
                return
            answers.append(await ask(session, url, question, retries, truncate))
            if pause_s:
                await asyncio.sleep(pause_s)

    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        await asyncio.gather(*(one(session) for _ in range(clients)))
    return answers


@contextmanager
def load(served: Served, questions: Iterator[Question], clients: int, **options: Any) -> Iterator[list[Answer]]:
    """Steady load in the background for as long as the block lasts; the answers are there afterwards."""
    done = threading.Event()
    collected: list[Answer] = []

    def work() -> None:
        collected.extend(asyncio.run(ask_steadily(f"{served.url}/predict", questions, clients, done.is_set, **options)))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield collected
    finally:
        done.set()
        thread.join(2 * TIMEOUT_S)


def statuses(answers: Sequence[Answer]) -> dict[int, int]:
    """How often each status came."""
    counts: dict[int, int] = {}
    for answer in answers:
        counts[answer.status] = counts.get(answer.status, 0) + 1
    return counts


class Counters:
    """Every counter of `/metrics`, read again and again."""

    def __init__(self, metrics_url: str) -> None:
        self._url = metrics_url
        self._seen: dict[tuple[str, Labels], float] = {}
        self.series = 0
        """Series of the latest reading, gauges included."""
        self.fallen: list[str] = []
        """Counters that were lower than before, or gone."""

    def read(self) -> None:
        """Take a reading; one that cannot be had is left out."""
        try:
            samples = read_metrics(self._url).samples
        except httpx.HTTPError:
            return
        self.series = len(samples)
        counters = {key: value for key, value in samples.items() if key[0].endswith(_CUMULATIVE)}
        for key, before in self._seen.items():
            if counters.get(key, -1.0) < before:
                self.fallen.append(f"{key[0]} {dict(key[1])}: {before:g} -> {counters.get(key)}")
        self._seen = counters
