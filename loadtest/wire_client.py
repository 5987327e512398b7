"""A closed-loop HTTP/1.1 client that costs next to nothing, for benchmarks on the server's own machine.

Requests are ready-made bytes, replies are read only as far as their status and length. `loadtest.client` reads what the
replies say; this one leaves the CPU to the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import orjson
import uvloop

from loadtest.client import Question

_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
MOST_RECONNECTS = 3


@dataclass
class Tally:
    """Latencies (seconds) of the replies with status 200, and how often each other status came."""

    latencies_s: list[float] = field(default_factory=list)
    failures: dict[int, int] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def replies(self) -> int:
        """Every reply."""
        return len(self.latencies_s) + sum(self.failures.values())


def encode(question: Question, host: str) -> bytes:
    """One request as bytes."""
    body = orjson.dumps({"inputs": question.text, "truncate": True})
    head = (
        f"POST /predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"x-quality: {question.quality}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Client(asyncio.Protocol):
    """Sends the next request when the last reply is complete. A connection that the server closes between two requests
    is opened anew, as any HTTP client does; one that breaks within a reply is a failure."""

    def __init__(self, address: tuple[str, int], requests: Iterator[bytes], tally: Tally) -> None:
        self._address, self._requests, self._tally = address, requests, tally
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._buffer = b""
        self._pending: bytes | None = None
        self._sent = 0.0
        self._reconnects = 0

    async def connect(self) -> None:
        """Open the connection and go on with what is pending."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, *self._address)
        except OSError:
            self._fail()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._send(self._pending if self._pending is not None else next(self._requests, None))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(_END)
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        at = head.find(_LENGTH)
        if at < 0:
            raise ValueError("a reply without content-length")
        length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
        if len(self._buffer) < head_end + len(_END) + length:
            return
        status = int(head[9:12])
        if status == 200:
            self._tally.latencies_s.append(time.perf_counter() - self._sent)
        else:
            self._tally.failures[status] = self._tally.failures.get(status, 0) + 1
        self._buffer, self._pending, self._reconnects = b"", None, 0
        if b"connection: close" in head:
            self._transport.close()
        else:
            self._send(next(self._requests, None))

    def connection_lost(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if self._buffer or self._reconnects >= MOST_RECONNECTS:
            self._fail()
            return
        self._reconnects += 1
        self._task = asyncio.ensure_future(self.connect())

    def _send(self, request: bytes | None) -> None:
        if request is None:
            self.done.set_result(None)
            self._transport.close()
            return
        self._pending = request
        self._sent = time.perf_counter()
        self._transport.write(request)

    def _fail(self) -> None:
        self._tally.failures[0] = self._tally.failures.get(0, 0) + 1
        if not self.done.done():
            self.done.set_result(None)


def run_closed_loop(host: str, port: int, questions: Sequence[Question], clients: int, timeout_s: float) -> Tally:
    """Send every question once through `clients` connections. Raises TimeoutError after `timeout_s` seconds."""
    requests = iter([encode(question, f"{host}:{port}") for question in questions])
    tally = Tally()

    async def run() -> None:
        crowd = [_Client((host, port), requests, tally) for _ in range(clients)]
        started = time.perf_counter()
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(client.connect() for client in crowd))
            await asyncio.gather(*(client.done for client in crowd))
        tally.wall_s = time.perf_counter() - started

    uvloop.run(run())
    return tally
