"""A closed-loop HTTP/1.1 client that costs next to nothing, for benchmarks on the server's own machine.

Requests are ready-made bytes, replies are read only as far as their status and length. `loadtest.client` reads what the
replies say; this one leaves the CPU to the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

import uvloop

END = b"\r\n\r\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"
_LENGTH = b"content-length:"
MOST_RECONNECTS = 3


@dataclass
class Tally:
    """Latencies (seconds) of the replies with status 200, and how often each other status came (0: no reply)."""

    latencies_s: list[float] = field(default_factory=list)
    failures: dict[int, int] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def replies(self) -> int:
        """Every reply."""
        return len(self.latencies_s) + sum(self.failures.values())

    def count(self, status: int, latency_s: float) -> None:
        """One reply more."""
        if status == 200:
            self.latencies_s.append(latency_s)
        else:
            self.failures[status] = self.failures.get(status, 0) + 1


def read_head(head: bytes) -> tuple[int, int | None]:
    """Status and length of the body that follows; None for a body in chunks. Raises ValueError for neither."""
    lower = head.lower()
    status = int(lower[9:12])
    at = lower.find(_LENGTH)
    if at >= 0:
        return status, int(lower[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
    if b"transfer-encoding: chunked" in lower:
        return status, None
    raise ValueError("a reply with neither content-length nor chunks")


def status_if_complete(buffer: bytes) -> int | None:
    """The status of the reply in `buffer`; None while some of it is missing."""
    head_end = buffer.find(END)
    if head_end < 0:
        return None
    status, length = read_head(buffer[:head_end])
    whole = buffer.endswith(LAST_CHUNK) if length is None else len(buffer) >= head_end + len(END) + length
    return status if whole else None


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
        try:
            status = status_if_complete(self._buffer)
        except ValueError:
            self._transport.close()
            self._fail()
            return
        if status is None:
            return
        self._tally.count(status, time.perf_counter() - self._sent)
        closes = b"connection: close" in self._buffer.partition(END)[0].lower()
        self._buffer, self._pending, self._reconnects = b"", None, 0
        if closes:
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
        self._tally.count(0, 0.0)
        if not self.done.done():
            self.done.set_result(None)


def run_closed_loop(host: str, port: int, requests: Iterable[bytes], clients: int, timeout_s: float) -> Tally:
    """Send every request once through `clients` connections. Raises TimeoutError after `timeout_s` seconds."""
    source = iter(requests)
    tally = Tally()

    async def run() -> None:
        crowd = [_Client((host, port), source, tally) for _ in range(clients)]
        started = time.perf_counter()
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(client.connect() for client in crowd))
            await asyncio.gather(*(client.done for client in crowd))
        tally.wall_s = time.perf_counter() - started

    uvloop.run(run())
    return tally
