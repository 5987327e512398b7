"""The engine: a request's texts in, answers out. One per replica; used from one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from server.engine.batching import BatchLimits
from server.engine.cache import AnswerCache, CachedAnswer, cache_key
from server.engine.errors import (
    ClientGone,
    DeadlineExceeded,
    EngineError,
    InputTooLarge,
    NotReady,
    Overloaded,
)
from server.engine.family import Family
from server.engine.runtime import Float32Array
from server.engine.scheduler import BatchRecord, Job, JobResult, Scheduler
from server.engine.tokenizer import Text
from server.shaping.policy import DialState, QualityClass

CacheState = Literal["hit", "miss", "shared"]


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What may change while the engine runs."""

    batch: BatchLimits = field(default_factory=BatchLimits)
    max_queue_requests: int = 512
    request_timeout_s: float = 10.0
    max_text_chars: int = 20_000
    max_texts_per_request: int = 64
    cache_max_bytes: int = 64 * 1024 * 1024
    cache_ttl_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Logits (float32, shape [labels]) of one text and what they cost."""

    logits: Float32Array
    variant: str
    point: str
    reason: str
    cache: CacheState
    cpu_ns: int


class UsageSink(Protocol):
    """Where the engine reports what it did; a replica's `server.usage.Usage`."""

    def request(
        self,
        variant: str,
        point: str,
        quality: str,
        outcome: str,
        cpu_ns: int,
        *,
        total_ns: int | None = None,
        queue_ns: int | None = None,
        tokenize_ns: int | None = None,
    ) -> None:
        """One text ended with `outcome`, owing `cpu_ns` of CPU time."""

    def batch(self, rows: int, tokens: int, padded_tokens: int, infer_ns: int) -> None:
        """One run of the runtime ended."""

    def count(self, name: str, amount: int = 1) -> None:
        """Count `cache_hits` or `cache_misses`."""

    def avoided(self, reason: str, cpu_ns: int) -> None:
        """CPU time that was not spent thanks to `reason` (`cache`, `fallback`)."""


@dataclass(slots=True)
class _Flight:
    """One computation that several equal requests may wait for. The first waiter owes its joules."""

    waiters: list[_Waiter] = field(default_factory=list)
    job: Job | None = None

    def abandoned(self) -> bool:
        return all(waiter.left() for waiter in self.waiters)


@dataclass(slots=True)
class _Waiter:
    future: asyncio.Future[Answer]
    is_gone: Callable[[], bool]
    quality: QualityClass
    point: str
    reason: str
    started_ns: int
    tokenize_ns: int
    first: bool

    def left(self) -> bool:
        return self.future.done() or self.is_gone()


def never_gone() -> bool:
    """The client of a request that cannot leave (tests, in-process callers)."""
    return False


class Engine:
    """Cache, single flight, tokenizer and scheduler around one family version at a time."""

    def __init__(
        self,
        family: Family,
        limits: EngineLimits,
        dial: DialState,
        usage: UsageSink,
        workers: int,
    ) -> None:
        self.family = family
        self.dial = dial
        self.limits = limits
        self.cache = AnswerCache(limits.cache_max_bytes, limits.cache_ttl_s)
        self._usage = usage
        self._flights: dict[tuple[bytes, str], _Flight] = {}
        self._scheduler = Scheduler(workers, limits.batch, self._record_batch)
        self._accepting = True
        self._active = 0
        self._quiet = asyncio.Event()
        self._cpu_ns_per_text = 4e6
        self._workers = workers

    @property
    def queued(self) -> int:
        """Texts that wait for a batch."""
        return self._scheduler.queued

    @property
    def active(self) -> int:
        """Requests that are being answered."""
        return self._active

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self._accepting

    def reconfigure(self, limits: EngineLimits, dial: DialState) -> None:
        """Take new bounds and a new dial; what is in flight ends as it began.

        Raises KeyError if the dial names a point that the family does not have; nothing is changed then.
        """
        for point in dial.point_by_class.values():
            self.family.rank(point)
        self.limits, self.dial = limits, dial
        self._scheduler.limits = limits.batch
        self.cache.resize(limits.cache_max_bytes, limits.cache_ttl_s)

    def swap(self, family: Family, dial: DialState) -> None:
        """Serve another version from now on; jobs in flight finish on the version they began with."""
        self.family, self.dial = family, dial
        self.cache.clear()

    async def predict(
        self,
        texts: Sequence[Text],
        *,
        quality: QualityClass = "standard",
        truncate: bool = False,
        is_gone: Callable[[], bool] = never_gone,
    ) -> list[Answer]:
        """Answer every text, in order. Raises an EngineError; if one text fails, the request fails."""
        if not self._accepting:
            raise NotReady("the server is stopping; send the request again in a moment")
        if len(texts) > self.limits.max_texts_per_request:
            raise InputTooLarge(
                f"inputs: {len(texts)} texts in one request; the limit is {self.limits.max_texts_per_request}"
            )
        family, dial = self.family, self.dial
        self._active += 1
        waiting: list[asyncio.Future[Answer] | Answer] = []
        try:
            for text in texts:
                self._check(family, text)
            for text in texts:
                waiting.append(self._begin(family, dial, text, quality, truncate, is_gone, len(texts)))
            async with asyncio.timeout(self.limits.request_timeout_s):
                return [one if isinstance(one, Answer) else await one for one in waiting]
        except TimeoutError:
            raise DeadlineExceeded(
                f"no answer within {self.limits.request_timeout_s:g} s; the server is busy, try again later"
            ) from None
        finally:
            self._active -= 1
            if not self._active and not self._accepting:
                self._quiet.set()
            for one in waiting:
                if not isinstance(one, Answer) and not one.cancel() and not one.cancelled():
                    one.exception()  # an error beside the one that is raised: marked as seen

    async def drain(self, timeout_s: float) -> bool:
        """Accept nothing more and wait for what was accepted; True if all of it was answered in time."""
        self._accepting = False
        if not self._active:
            return True
        try:
            await asyncio.wait_for(self._quiet.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """End the workers."""
        self._accepting = False
        self._scheduler.close()

    def _check(self, family: Family, text: Text) -> None:
        longest = max(len(text.first), len(text.second or ""))
        if longest > self.limits.max_text_chars:
            raise InputTooLarge(f"inputs: a text has {longest} characters; the limit is {self.limits.max_text_chars}")
        family.tokenizer.check(text)

    def _begin(
        self,
        family: Family,
        dial: DialState,
        text: Text,
        quality: QualityClass,
        truncate: bool,
        is_gone: Callable[[], bool],
        texts: int,
    ) -> asyncio.Future[Answer] | Answer:
        """Answer from the cache, or join an equal computation in flight, or start one."""
        started_ns, cpu_before = time.perf_counter_ns(), time.thread_time_ns()
        point, reason = dial.answers(quality)
        tokenizer = family.tokenizer
        first = tokenizer.normalize(text.first)
        second = None if text.second is None else tokenizer.normalize(text.second)
        key = cache_key(family.digest, first, second, truncate)
        kept = self.cache.get(key, family.rank(point))
        if kept is not None:
            return self._hit(kept, quality, reason, started_ns, cpu_before)
        self._usage.count("cache_misses")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        flight = self._flights.get((key, point))
        if flight is not None:
            cpu_ns = time.thread_time_ns() - cpu_before
            flight.waiters.append(_Waiter(future, is_gone, quality, point, reason, started_ns, cpu_ns, first=False))
            return future
        variant = family.variant_of(point).name
        if self.queued >= self.limits.max_queue_requests:
            self._usage.request(variant, point, quality, "shed", time.thread_time_ns() - cpu_before)
            raise Overloaded("the queue is full; come back after Retry-After seconds", self._backlog_s(texts))
        try:
            tokens = tokenizer.encode(text, truncate=truncate)
        except EngineError:
            self._usage.request(variant, point, quality, "error", time.thread_time_ns() - cpu_before)
            raise
        cpu_ns = time.thread_time_ns() - cpu_before
        flight = self._flights[(key, point)] = _Flight()
        flight.waiters.append(_Waiter(future, is_gone, quality, point, reason, started_ns, cpu_ns, first=True))
        flight.job = Job(
            tokens,
            family,
            variant,
            flight.abandoned,
            lambda result: self._finish(family, key, point, variant, result),
        )
        self._scheduler.submit(flight.job)
        return future

    def _hit(self, kept: CachedAnswer, quality: QualityClass, reason: str, started_ns: int, cpu_before: int) -> Answer:
        cpu_ns = time.thread_time_ns() - cpu_before
        self._usage.count("cache_hits")
        self._usage.avoided("cache", kept.cpu_ns - cpu_ns)
        self._usage.request(
            kept.variant,
            kept.point,
            quality,
            "cached",
            cpu_ns,
            total_ns=time.perf_counter_ns() - started_ns,
        )
        return Answer(kept.logits, kept.variant, kept.point, reason, "hit", cpu_ns)

    def _finish(self, family: Family, key: bytes, point: str, variant: str, result: JobResult) -> None:
        """A job ended: keep its answer and wake everyone who waits for it."""
        flight = self._flights[(key, point)]
        if result.dropped and flight.job is not None and not flight.abandoned():
            # Somebody joined after the worker had dropped it.
            self._scheduler.submit(flight.job)
            return
        del self._flights[(key, point)]
        if result.logits is not None and family is self.family:
            kept = CachedAnswer(result.logits, point, variant, family.rank(point), result.cpu_ns)
            self.cache.put(key, kept)
        if not result.dropped:
            self._usage.avoided("fallback", _saved_by_fallback(family, point, result.cpu_ns))
        ended_ns = time.perf_counter_ns()
        for waiter in flight.waiters:
            cpu_ns = waiter.tokenize_ns + (result.cpu_ns if waiter.first else 0)
            if not waiter.first:
                self._usage.avoided("cache", result.cpu_ns)
            outcome = self._settle(waiter, variant, result, cpu_ns)
            self._usage.request(
                variant,
                point,
                waiter.quality,
                outcome,
                cpu_ns,
                total_ns=ended_ns - waiter.started_ns,
                queue_ns=result.queued_ns,
                tokenize_ns=waiter.tokenize_ns,
            )

    def _settle(self, waiter: _Waiter, variant: str, result: JobResult, cpu_ns: int) -> str:
        future = waiter.future
        if future.done():
            return "cancelled"
        if result.dropped:
            future.set_exception(ClientGone("the client left before its batch was formed"))
            return "cancelled"
        if result.error is not None:
            future.set_exception(result.error)
            return "error"
        assert result.logits is not None
        state: CacheState = "miss" if waiter.first else "shared"
        future.set_result(Answer(result.logits, variant, waiter.point, waiter.reason, state, cpu_ns))
        return "ok" if waiter.first else "cached"

    def _record_batch(self, record: BatchRecord) -> None:
        # A slow average: only the Retry-After hint is made of it.
        self._cpu_ns_per_text += 0.05 * (record.cpu_ns / record.rows - self._cpu_ns_per_text)
        self._usage.batch(record.rows, record.tokens, record.padded_tokens, record.infer_ns)

    def _backlog_s(self, texts: int) -> float:
        return max(1.0, (self.queued + texts) * self._cpu_ns_per_text / 1e9 / self._workers)


def _saved_by_fallback(family: Family, point: str, cpu_ns: int) -> int:
    """CPU time that full quality would have cost beyond `cpu_ns`, by the compiled figures of both points."""
    spent = family.points[family.rank(point)].cpu_seconds_per_1k
    return round(cpu_ns * (family.points[0].cpu_seconds_per_1k / spent - 1))
