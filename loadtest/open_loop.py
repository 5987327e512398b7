"""An open-loop HTTP/1.1 client: requests come at a rate, whether or not the server keeps up.

A closed loop slows down with the server and so hides an overload. Arrivals are spaced evenly; each takes an idle
connection or opens one. Latency runs from the moment that a request was written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import orjson
import uvloop

from loadtest.client import Question
from loadtest.wire_client import END, status_if_complete

_RETRY_AFTER = b"\r\nretry-after:"
SLICE_S = 0.004
MOST_CONNECTIONS = 4000
DRAIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended. `status` 0: the connection broke or none could be made."""

    sent_s: float
    """By `time.perf_counter`."""
    latency_s: float
    status: int
    retry_after: bool = False
    text: str = ""


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(
        self,
        idle: list[_Connection],
        report: Callable[[Outcome], None],
        again: Callable[[bytes, str], None],
    ) -> None:
        """`again` sends a request on a new connection: the server may close one that rests just as it is used, and any
        HTTP client then asks anew."""
        self._idle, self._report, self._again = idle, report, again
        self._request = b""
        self._used = False
        self._buffer = b""
        self._busy = False
        self._sent_s = 0.0
        self._text = ""
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def send(self, request: bytes, text: str) -> None:
        """Write a request."""
        self._busy, self._buffer, self._text, self._request = True, b"", text, request
        self._sent_s = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        status = status_if_complete(self._buffer)
        if status is None:
            return
        head = self._buffer[: self._buffer.find(END) + 2].lower()
        self._end(status, _RETRY_AFTER in head)
        if b"connection: close" in head:
            self.close()
        elif self.open:
            self._idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._busy and self._used and not self._buffer:
            self._busy = False
            self._again(self._request, self._text)
        elif self._busy:
            self._end(0, False)

    def close(self) -> None:
        """Leave."""
        self.open = False
        self._transport.abort()

    def _end(self, status: int, retry_after: bool) -> None:
        self._busy, self._used = False, True
        now = time.perf_counter()
        self._report(Outcome(self._sent_s, now - self._sent_s, status, retry_after, self._text))


def encode(question: Question, host: str) -> bytes:
    """One request as bytes."""
    body = orjson.dumps({"inputs": question.text, "truncate": True})
    head = (
        f"POST /predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"x-quality: {question.quality}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class OpenLoop:
    """Sends questions in turn to one address."""

    def __init__(self, host: str, port: int, questions: Sequence[Question]) -> None:
        self._address = (host, port)
        self._requests = [(encode(question, f"{host}:{port}"), question.text) for question in questions]
        self._next = 0
        self._idle: list[_Connection] = []
        self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.outcomes: list[Outcome] = []

    async def offer(self, rate: float, seconds: float) -> float:
        """Send `rate` requests a second for `seconds`, then wait for what is under way, 15 s at most. Returns the rate
        that was reached: below `rate` if this process could not keep up."""
        started = time.perf_counter()
        first = self._next
        while (elapsed := time.perf_counter() - started) < seconds:
            while self._next - first < rate * elapsed:
                self._send()
            await asyncio.sleep(SLICE_S)
        reached = (self._next - first) / (time.perf_counter() - started)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while self._in_flight:  # noqa: ASYNC110 - an event would cost at every reply
                    await asyncio.sleep(0.05)
        return reached

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _send(self) -> None:
        request, text = self._requests[self._next % len(self._requests)]
        self._next += 1
        self._in_flight += 1
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                connection.send(request, text)
                return
        if self._in_flight > MOST_CONNECTIONS:
            self._take(Outcome(time.perf_counter(), 0.0, 0, text=text))
            return
        self._again(request, text)

    def _again(self, request: bytes, text: str) -> None:
        task = asyncio.create_task(self._send_on_new(request, text))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_on_new(self, request: bytes, text: str) -> None:
        began = time.perf_counter()
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self._idle, self._take, self._again), *self._address
            )
        except OSError:
            self._take(Outcome(began, time.perf_counter() - began, 0, text=text))
            return
        connection.send(request, text)

    def _take(self, outcome: Outcome) -> None:
        self._in_flight -= 1
        self.outcomes.append(outcome)


def offer(
    host: str, port: int, questions: Sequence[Question], rate: float, seconds: float
) -> tuple[list[Outcome], float]:
    """Offer a load; returns what became of every request, and the rate that was reached."""
    loop = OpenLoop(host, port, questions)

    async def run() -> float:
        try:
            return await loop.offer(rate, seconds)
        finally:
            loop.close()

    before = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):  # the clock of the measurement: on the server's own cores it must not wait
        os.setpriority(os.PRIO_PROCESS, 0, before - 10)
    try:
        reached = uvloop.run(run())
    finally:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, before)
    return loop.outcomes, reached
