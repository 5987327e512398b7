"""An open-loop HTTP/1.1 client for low rates: requests leave at given times whether or not the last one is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from loadtest.wire_client import END, LAST_CHUNK, Tally, read_head

REQUEST_TIMEOUT_S = 30.0
MOST_CONNECTIONS = 256


class _Pool:
    """Connections that are kept open and used again."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: bytes) -> int:
        """Send one request and read its reply. Returns its status."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(*self._address)
        try:
            writer.write(request)
            head = await reader.readuntil(END)
            status, length = read_head(head)
            await (reader.readuntil(LAST_CHUNK) if length is None else reader.readexactly(length))
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in head.lower():
            writer.close()
        else:
            self._idle.append((reader, writer))
        return status

    def close(self) -> None:
        """Close what is idle."""
        for _, writer in self._idle:
            writer.close()


def run_paced(host: str, port: int, requests: Iterable[bytes], times_s: Iterable[float]) -> Tally:
    """Send one request at each of the times (ascending, seconds from now) and wait for all answers.

    A request that meets more than `MOST_CONNECTIONS` unanswered ones counts as failed (status 0).
    """
    tally = Tally()

    async def one(pool: _Pool, request: bytes, due: float) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                status = await pool.ask(request)
        except (OSError, EOFError, ValueError, TimeoutError):
            status = 0
        tally.count(status, time.perf_counter() - due)

    async def run() -> None:
        pool = _Pool(host, port)
        asked: set[asyncio.Task[None]] = set()
        started = time.perf_counter()
        for request, at in zip(requests, times_s, strict=False):
            await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
            if len(asked) >= MOST_CONNECTIONS:
                tally.count(0, 0.0)
                continue
            task = asyncio.create_task(one(pool, request, time.perf_counter()))
            asked.add(task)
            task.add_done_callback(asked.discard)
        await asyncio.gather(*asked)
        tally.wall_s = time.perf_counter() - started
        pool.close()

    asyncio.run(run())
    return tally
