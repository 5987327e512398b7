"""Replicas share answers through a real Redis; without it they compute, and nobody waits for it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from server.engine.engine import Engine, EngineLimits
from server.engine.family import Family
from server.engine.redis_level import MAX_WRITES, PAUSE_S, TRIPPED_BY, RedisLevel, name_of, open_redis
from server.engine.tokenizer import Text
from server.shaping.policy import QualityClass
from tests.support.engines import RecordingUsage, dial, until

SERVER = shutil.which("redis-server")
pytestmark = pytest.mark.skipif(SERVER is None, reason="redis-server is not installed (Debian: redis-server)")

ROW = np.array([1, 2, 3], dtype=np.float32)


class Redis:
    """A real server on a socket of its own."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        assert SERVER is not None
        self.socket.unlink(missing_ok=True)
        command = [SERVER, "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(self._folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        ends = time.monotonic() + 20
        while not self.socket.exists():
            assert time.monotonic() < ends
            time.sleep(0.01)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(20)
            self.process = None


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    server.start()
    yield server
    server.stop()


class Counts(Counter[str]):
    def add(self, name: str, amount: int) -> None:
        self[name] += amount


@asynccontextmanager
async def level_of(url: str) -> AsyncIterator[tuple[RedisLevel, Counts]]:
    counts = Counts()
    level = open_redis(url, None, counts.add)
    level._clock = clock = Clock()  # type: ignore[assignment]
    level.__dict__["clock"] = clock
    try:
        yield level, counts
    finally:
        await level.close()


class Clock:
    """Time that only passes when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def pass_time(level: RedisLevel, seconds: float) -> None:
    level.__dict__["clock"].now += seconds


async def written(level: RedisLevel) -> None:
    await until(lambda: level._writer is not None and level._writer.done() and not level._writes)


async def test_what_one_replica_writes_another_reads(redis: Redis) -> None:
    async with level_of(redis.url) as (one, _), level_of(redis.url) as (other, counts):
        one.put(b"k" * 16, 1, ROW, 777, 60)
        await written(one)
        found = await other.get(b"k" * 16, 1, 3)
        assert found is not None
        assert (found.logits.tolist(), found.rank, found.cpu_ns) == ([1, 2, 3], 1, 777)
        assert await other.get(b"x" * 16, 1, 3) is None
    assert counts == {"cache_l2_hits": 1, "cache_l2_misses": 1}


async def test_a_better_answer_serves_everyone_and_a_cheaper_one_no_stricter_class(redis: Redis) -> None:
    async with level_of(redis.url) as (level, _):
        level.put(b"k" * 16, 2, ROW, 1, 60)
        await written(level)
        assert await level.get(b"k" * 16, 1, 3) is None
        level.put(b"k" * 16, 0, 2 * ROW, 1, 60)
        level.put(b"k" * 16, 2, 3 * ROW, 1, 60)
        await written(level)
        found = [await level.get(b"k" * 16, rank, 3) for rank in range(3)]
        assert [one and one.rank for one in found] == [0, 0, 0]


async def test_an_answer_is_forgotten_after_its_time(redis: Redis) -> None:
    async with level_of(redis.url) as (level, _):
        level.put(b"k" * 16, 0, ROW, 1, 0.05)
        await written(level)
        await asyncio.sleep(0.1)
        assert await level.get(b"k" * 16, 0, 3) is None


async def test_what_is_no_answer_is_not_believed_and_counted(redis: Redis) -> None:
    async with level_of(redis.url) as (level, counts):
        await level._client.set(name_of(b"k" * 16, 0), b"\x80\x04garbage")
        assert await level.get(b"k" * 16, 0, 3) is None
    assert counts["cache_l2_errors"] == 1


async def test_lookups_of_one_moment_travel_together(redis: Redis) -> None:
    async with level_of(redis.url) as (level, _):
        before = (await level._client.info("commandstats")).get("cmdstat_mget", {"calls": 0})["calls"]
        found = await asyncio.gather(*(level.get(b"%016d" % number, 0, 3) for number in range(50)))
        after = (await level._client.info("commandstats"))["cmdstat_mget"]["calls"]
    assert found == [None] * 50
    assert after - before == 1


async def test_when_it_is_down_it_is_left_alone_for_a_while_and_used_again_later(redis: Redis) -> None:
    async with level_of(redis.url) as (level, counts):
        redis.stop()
        for _ in range(TRIPPED_BY):
            assert level.ready
            assert await level.get(b"k" * 16, 0, 3) is None
        assert not level.ready
        assert counts["cache_l2_errors"] == TRIPPED_BY
        assert await level.get(b"k" * 16, 0, 3) is None  # not asked
        level.put(b"k" * 16, 0, ROW, 1, 60)
        assert counts["cache_l2_errors"] == TRIPPED_BY
        redis.start()
        pass_time(level, PAUSE_S)
        assert level.ready
        level.put(b"k" * 16, 0, ROW, 1, 60)
        await written(level)
        assert await level.get(b"k" * 16, 0, 3) is not None


async def test_one_that_hangs_is_given_up_after_a_moment(redis: Redis) -> None:
    async with level_of(redis.url) as (level, _):
        assert await level.get(b"k" * 16, 0, 3) is None
        assert redis.process is not None
        redis.process.send_signal(signal.SIGSTOP)
        for _ in range(TRIPPED_BY):
            assert await asyncio.wait_for(level.get(b"k" * 16, 0, 3), 20) is None
        assert not level.ready


async def test_writes_wait_in_a_bounded_queue(redis: Redis) -> None:
    async with level_of(redis.url) as (level, counts):
        for number in range(MAX_WRITES + 10):  # no turn of the loop between them
            level.put(b"%016d" % number, 0, ROW, 1, 60)
        assert len(level._writes) == MAX_WRITES
        assert counts["cache_l2_errors"] == 10
        await written(level)
        assert await level.get(b"%016d" % (MAX_WRITES + 9), 0, 3) is not None


@asynccontextmanager
async def replica(family: Family, url: str, standard: str = "full") -> AsyncIterator[tuple[Engine, RecordingUsage]]:
    usage = RecordingUsage()
    engine = Engine(family, EngineLimits(), dial(standard), usage, 1, open_redis(url, None, usage.count))
    try:
        yield engine, usage
    finally:
        await engine.close()


async def ask(engine: Engine, text: str, quality: QualityClass = "standard") -> tuple[str, str, list[float]]:
    (answer,) = await engine.predict([Text(text)], quality=quality)
    return answer.cache, answer.point, answer.logits.tolist()


async def test_replicas_answer_from_what_another_has_computed(family: Family, redis: Redis) -> None:
    async with replica(family, redis.url) as (one, _):
        assert await ask(one, "card") == ("miss", "full", [1, 0, 0])
        async with replica(family, redis.url, standard="nano") as (other, usage):
            # The first replica writes behind its answers.
            await until(lambda: not one._second._writes and one._second._writer.done())  # type: ignore[union-attr]
            assert await ask(other, "card") == ("hit", "full", [1, 0, 0])
            assert await ask(other, "card") == ("hit", "full", [1, 0, 0])  # now from its own memory
            assert await ask(other, "parcel") == ("miss", "nano", [0, 0, 0.25])
            await until(lambda: not other._second._writes and other._second._writer.done())  # type: ignore[union-attr]
        assert usage.counts == {"cache_hits": 2, "cache_misses": 1, "cache_l2_hits": 1, "cache_l2_misses": 1}
        assert usage.outcomes == {"cached": 2, "ok": 1}
        # The cheaper answer of the other replica serves no stricter class.
        assert (await ask(one, "parcel", "strict"))[:2] == ("miss", "full")


async def test_equal_texts_at_once_are_looked_up_and_computed_once(family: Family, redis: Redis) -> None:
    async with replica(family, redis.url) as (engine, usage):
        found = await asyncio.gather(*(ask(engine, "card") for _ in range(20)))
        assert sorted(cache for cache, _, _ in found) == ["miss"] + ["shared"] * 19
    assert usage.counts["cache_l2_misses"] == 1
    assert len(usage.batches) == 1


async def test_a_replica_answers_on_when_redis_dies(family: Family, redis: Redis) -> None:
    async with replica(family, redis.url) as (engine, usage):
        assert (await ask(engine, "card"))[0] == "miss"
        redis.stop()
        for number in range(10):
            assert (await ask(engine, f"card w{number}"))[0] == "miss"
    assert usage.counts["cache_l2_errors"] >= 1
    assert usage.outcomes == {"ok": 11}


async def test_a_text_that_is_refused_after_the_lookup_is_reported_once(family: Family, redis: Redis) -> None:
    async with replica(family, redis.url) as (engine, usage):
        with pytest.raises(Exception, match="tokens"):
            await ask(engine, "w1 " * 65)
        assert (await ask(engine, "card"))[0] == "miss"
        assert engine.active == 0
    assert usage.outcomes == {"error": 1, "ok": 1}
