"""The second level of the cache in Redis, shared by the replicas of several machines.

One key for each operating point of an answer: a reader asks for its own point and all better ones, so that a cheaper
answer neither replaces a better one nor serves a stricter class, without a script or a transaction.

It never holds anybody up for long: lookups of one moment travel together and have a short time limit, writes wait in a
bounded queue behind the answers, and after a few failures in a row nothing is asked for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from server.engine.runtime import Float32Array
from server.engine.second_level import SharedAnswer, decode_answer, encode_answer

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

PREFIX = b"jouleserve:1:"
READ_TIMEOUT_S = 0.025
WRITE_TIMEOUT_S = 0.25
CLOSE_TIMEOUT_S = 0.5
TRIPPED_BY = 3
PAUSE_S = 5.0
MAX_READS = 1024
MAX_WRITES = 1024
PER_TRIP = 64


@dataclass(slots=True)
class Breaker:
    """Opens for `PAUSE_S` after `TRIPPED_BY` failures in a row, and after each failure until something succeeds."""

    failures: int = 0
    shut_until_s: float = 0.0

    def failed(self, now_s: float) -> bool:
        """One more failure; True if the breaker has just opened for the first time in a row."""
        self.failures += 1
        if self.failures >= TRIPPED_BY:
            self.shut_until_s = now_s + PAUSE_S
        return self.failures == TRIPPED_BY

    def succeeded(self) -> None:
        """It works again."""
        self.failures = 0


@dataclass(slots=True)
class _Read:
    key: bytes
    worst_rank: int
    labels: int
    future: asyncio.Future[SharedAnswer | None]


class RedisLevel:
    """A `SecondLevel`. Used from one event loop. `count` takes the names of counters and how often."""

    def __init__(
        self,
        client: Redis,
        count: Callable[[str, int], None],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._count = count
        self._clock = clock
        self._wall_clock = wall_clock
        self._breaker = Breaker()
        self._reads: deque[_Read] = deque()
        self._writes: deque[tuple[bytes, bytes, int]] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether it answered lately, or it is time to try again."""
        return self._clock() >= self._breaker.shut_until_s

    async def get(self, key: bytes, worst_rank: int, labels: int) -> SharedAnswer | None:
        """The best answer of rank `worst_rank` or better with so many labels; None if there is none, or in trouble."""
        if not self.ready or len(self._reads) >= MAX_READS:
            return None
        read = _Read(key, worst_rank, labels, asyncio.get_running_loop().create_future())
        self._reads.append(read)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read_all())
        return await read.future

    def put(self, key: bytes, rank: int, logits: Float32Array, cpu_ns: int, ttl_s: float) -> None:
        """Share an answer for `ttl_s` seconds, some time soon. When too many wait, the oldest is given up."""
        if not self.ready:
            return
        if len(self._writes) >= MAX_WRITES:
            self._writes.popleft()
            self._count("cache_l2_errors", 1)
        value = encode_answer(rank, logits, cpu_ns, self._wall_clock())
        self._writes.append((name_of(key, rank), value, max(1, int(ttl_s * 1000))))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())

    async def close(self) -> None:
        """Write what is left, within a moment, and disconnect."""
        for task in (self._reader, self._writer):
            if task is not None and not task.done():
                await asyncio.wait([task], timeout=CLOSE_TIMEOUT_S)
                task.cancel()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._client.aclose()
        except Exception as error:  # nothing depends on it any more
            log.debug("closing redis: %r", error)

    async def _read_all(self) -> None:
        while self._reads:
            reads = [self._reads.popleft() for _ in range(min(PER_TRIP, len(self._reads)))]
            try:
                found = await self._read(reads) if self.ready else {}
            finally:
                for read in reads:
                    if not read.future.done():
                        read.future.set_result(None)
            self._count("cache_l2_hits", len(found))
            self._count("cache_l2_misses", len(reads) - len(found))

    async def _read(self, reads: list[_Read]) -> dict[int, SharedAnswer]:
        """Ask for these, best point first, and tell who waits; what was found, by place in `reads`."""
        wanted = [(place, rank) for place, read in enumerate(reads) for rank in range(read.worst_rank + 1)]
        names = [name_of(reads[place].key, rank) for place, rank in wanted]
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                values = await self._client.mget(names)
        except Exception as error:  # the library raises its own, the socket's and the timer's
            self._failed("asked", error)
            return {}
        self._breaker.succeeded()
        now_s = self._wall_clock()
        found: dict[int, SharedAnswer] = {}
        for (place, rank), value in zip(wanted, values, strict=True):
            if value is None or place in found:
                continue
            read = reads[place]
            answer = decode_answer(value, rank, read.labels, now_s) if isinstance(value, bytes) else None
            if answer is None:
                self._count("cache_l2_errors", 1)
                continue
            found[place] = answer
            if not read.future.done():
                read.future.set_result(answer)
        return found

    async def _write_all(self) -> None:
        while self._writes and self.ready:
            batch = list(islice(self._writes, PER_TRIP))
            for _ in batch:
                self._writes.popleft()
            try:
                async with asyncio.timeout(WRITE_TIMEOUT_S), self._client.pipeline(transaction=False) as pipeline:
                    for name, value, ttl_ms in batch:
                        pipeline.set(name, value, px=ttl_ms)
                    await pipeline.execute()
            except Exception as error:
                self._failed("written to", error)
            else:
                self._breaker.succeeded()

    def _failed(self, what: str, error: Exception) -> None:
        self._count("cache_l2_errors", 1)
        if self._breaker.failed(self._clock()):
            log.warning("redis could not be %s (%r); answers are computed, next try in %g s", what, error, PAUSE_S)
            self._writes.clear()


def name_of(key: bytes, rank: int) -> bytes:
    """The name in Redis of an answer by the operating point of this rank."""
    return PREFIX + key + b":%d" % rank


def open_redis(url: str, password: str | None, count: Callable[[str, int], None]) -> RedisLevel:
    """A second level that connects when it is first asked. Raises ValueError for a URL that is none."""
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    client = Redis.from_url(
        url,
        password=password,
        socket_timeout=WRITE_TIMEOUT_S,
        socket_connect_timeout=WRITE_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),  # what fails is computed instead
        max_connections=4,
        decode_responses=False,
    )
    return RedisLevel(client, count)
