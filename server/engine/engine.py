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
    InvalidInput,
    NotReady,
    Overloaded,
)
from server.engine.family import Family
from server.engine.runtime import Float32Array
from server.engine.scheduler import BatchRecord, JobResult, Scheduler
from server.engine.tokenizer import Text, Tokens, Truncation
from server.shaping.policy import DialState, QualityClass

CacheState = Literal["hit", "miss", "shared"]

# Characters that are normalized and tokenized before other requests get a turn: a few milliseconds' worth.
CHARS_PER_TURN = 20_000


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


@dataclass(frozen=True, slots=True)
class _Request:
    """What the texts of one request share."""

    family: Family
    quality: QualityClass
    point: str
    rank: int
    variant: str
    reason: str
    truncate: Truncation | None
    is_gone: Callable[[], bool]


@dataclass(slots=True, eq=False)
class _Waiter:
    """One text of one request, waiting for a computation. `cpu_ns` is what it cost so far."""

    future: asyncio.Future[Answer]
    request: _Request
    started_ns: int
    cpu_ns: int

    def left(self) -> bool:
        return self.future.done() or self.request.is_gone()


@dataclass(slots=True, eq=False)
class _Flight:
    """One computation that several equal texts may wait for; the scheduler's job."""

    engine: Engine
    key: bytes
    point: str
    family: Family
    variant: str
    tokens: Tokens
    waiters: list[_Waiter] = field(default_factory=list)
    enqueued_ns: int = 0

    def abandoned(self) -> bool:
        return all(waiter.left() for waiter in self.waiters)

    def finish(self, result: JobResult) -> None:
        self.engine._land(self, result)


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
        self._cpu_ns_per_text = family.points[0].cpu_seconds_per_1k * 1e6
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

    @property
    def healthy(self) -> bool:
        """Whether every worker thread lives; one that died takes its share of the throughput with it."""
        return self._scheduler.healthy

    def reconfigure(self, limits: EngineLimits, dial: DialState, family: Family | None = None) -> None:
        """Take new bounds, a new dial and, if one is given, another version, all at once.

        What is in flight ends as it began, on the version that it began with. Raises KeyError if the dial names a
        point that the family does not have; nothing is changed then.
        """
        newest = family or self.family
        for point in dial.point_by_class.values():
            newest.rank(point)
        if newest is not self.family:
            self.family = newest
            self.cache.clear()
        self.limits, self.dial = limits, dial
        self._scheduler.limits = limits.batch
        self.cache.resize(limits.cache_max_bytes, limits.cache_ttl_s)

    async def predict(
        self,
        texts: Sequence[Text],
        *,
        quality: QualityClass = "standard",
        truncate: Truncation | None = None,
        is_gone: Callable[[], bool] = never_gone,
    ) -> list[Answer]:
        """Answer every text, in order. Raises an EngineError; if one text fails, the request fails."""
        if not self._accepting:
            raise NotReady("the server is stopping; send the request again in a moment")
        limits = self.limits
        if len(texts) > limits.max_texts_per_request:
            raise InputTooLarge(
                f"inputs: {len(texts)} texts in one request; the limit is {limits.max_texts_per_request}"
            )
        request = self._request(quality, truncate, is_gone)
        self._active += 1
        begun: list[asyncio.Future[Answer] | Answer] = []
        try:
            for text in texts:
                self._check(request.family, text)
            await self._begin_all(request, texts, begun)
            async with asyncio.timeout(limits.request_timeout_s):
                return [one if isinstance(one, Answer) else await one for one in begun]
        except TimeoutError:
            raise DeadlineExceeded(
                f"no answer within {limits.request_timeout_s:g} s; the server is busy, try again later"
            ) from None
        finally:
            self._leave(begun)

    async def drain(self, timeout_s: float) -> bool:
        """Accept nothing more and wait for what was accepted; True if all of it was answered in time."""
        self._accepting = False
        if self._active:
            try:
                await asyncio.wait_for(self._quiet.wait(), timeout_s)
            except TimeoutError:
                return False
        return True

    async def close(self) -> None:
        """Accept nothing more, finish what is queued and end the workers."""
        self._accepting = False
        await self._scheduler.close()

    def _request(self, quality: QualityClass, truncate: Truncation | None, is_gone: Callable[[], bool]) -> _Request:
        family = self.family
        point, reason = self.dial.answers(quality)
        rank = family.rank(point)
        return _Request(family, quality, point, rank, family.points[rank].variant, reason, truncate, is_gone)

    def _check(self, family: Family, text: Text) -> None:
        longest = len(text.first) if text.second is None else max(len(text.first), len(text.second))
        if longest > self.limits.max_text_chars:
            raise InputTooLarge(f"inputs: a text has {longest} characters; the limit is {self.limits.max_text_chars}")
        family.tokenizer.check(text)

    async def _begin_all(
        self, request: _Request, texts: Sequence[Text], begun: list[asyncio.Future[Answer] | Answer]
    ) -> None:
        """Begin every text; what was begun stands in `begun` even if one raises."""
        admitted, characters = False, 0
        for text in texts:
            answer = self._begin(request, text, len(texts), admitted)
            begun.append(answer)
            # A request is admitted whole: it would be a waste to refuse the rest of it.
            admitted = admitted or isinstance(answer, asyncio.Future)
            characters += len(text.first) + len(text.second or "")
            if characters > CHARS_PER_TURN:
                characters = 0
                await asyncio.sleep(0)

    def _begin(self, request: _Request, text: Text, texts: int, admitted: bool) -> asyncio.Future[Answer] | Answer:
        """Answer from the cache, or join an equal computation in flight, or start one."""
        started_ns, cpu_before = time.perf_counter_ns(), time.thread_time_ns()
        key = _key_of(request, text)
        kept = self.cache.get(key, request.rank)
        if kept is not None:
            return self._hit(kept, request, started_ns, cpu_before)
        self._usage.count("cache_misses")
        flight = self._flights.get((key, request.point))
        if flight is None:
            try:
                if not admitted:
                    self._admit(texts)
                tokens = request.family.tokenizer.encode(text, truncate=request.truncate)
            except EngineError as error:
                outcome = "shed" if isinstance(error, Overloaded) else "error"
                cpu_ns = time.thread_time_ns() - cpu_before
                self._usage.request(request.variant, request.point, request.quality, outcome, cpu_ns)
                raise
            flight = _Flight(self, key, request.point, request.family, request.variant, tokens)
            self._flights[(key, request.point)] = flight
            self._scheduler.submit(flight)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        flight.waiters.append(_Waiter(future, request, started_ns, time.thread_time_ns() - cpu_before))
        return future

    def _admit(self, texts: int) -> None:
        """Raise Overloaded if the queue is full or so long that the answer would come too late."""
        queued = self.queued
        wait_s = queued * self._cpu_ns_per_text / 1e9 / self._workers
        if queued >= self.limits.max_queue_requests or (queued and wait_s > self.limits.request_timeout_s):
            raise Overloaded(
                f"{queued} texts are waiting; come back after Retry-After seconds",
                max(1.0, wait_s + texts * self._cpu_ns_per_text / 1e9),
            )

    def _hit(self, kept: CachedAnswer, request: _Request, started_ns: int, cpu_before: int) -> Answer:
        cpu_ns = time.thread_time_ns() - cpu_before
        usage = self._usage
        usage.count("cache_hits")
        usage.avoided("cache", kept.cpu_ns - cpu_ns)
        total_ns = time.perf_counter_ns() - started_ns
        usage.request(kept.variant, kept.point, request.quality, "cached", cpu_ns, total_ns=total_ns)
        return Answer(kept.logits, kept.variant, kept.point, request.reason, "hit", cpu_ns)

    def _land(self, flight: _Flight, result: JobResult) -> None:
        """A computation ended: keep its answer and wake everyone who waits for it."""
        if result.dropped and not flight.abandoned():
            self._scheduler.submit(flight)  # somebody joined after the worker had dropped it
            return
        del self._flights[(flight.key, flight.point)]
        family, waiters = flight.family, flight.waiters
        if result.logits is not None and family is self.family:
            rank = family.rank(flight.point)
            self.cache.put(flight.key, CachedAnswer(result.logits, flight.point, flight.variant, rank, result.cpu_ns))
        # The first who still waits owes the computation; if nobody does, the one who began it.
        owing = next((waiter for waiter in waiters if not waiter.future.done()), waiters[0])
        outcomes = [_settle(waiter, flight, result, first=waiter is owing) for waiter in waiters]
        self._usage.avoided("fallback", _saved_by_fallback(family, flight.point, result.cpu_ns))
        ended_ns = time.perf_counter_ns()
        for waiter, outcome in zip(waiters, outcomes, strict=True):
            if waiter is not owing:
                self._usage.avoided("cache", result.cpu_ns)
            self._usage.request(
                flight.variant,
                flight.point,
                waiter.request.quality,
                outcome,
                waiter.cpu_ns + (result.cpu_ns if waiter is owing else 0),
                total_ns=ended_ns - waiter.started_ns,
                queue_ns=result.queued_ns,
                tokenize_ns=waiter.cpu_ns,
            )

    def _leave(self, begun: list[asyncio.Future[Answer] | Answer]) -> None:
        """A request ended, one way or another: nothing of it is waited for any more."""
        self._active -= 1
        if not self._active and not self._accepting:
            self._quiet.set()
        for one in begun:
            if not isinstance(one, Answer) and not one.cancel() and not one.cancelled():
                one.exception()  # an error beside the one that is raised: marked as seen

    def _record_batch(self, record: BatchRecord) -> None:
        # A slow average: only the expected wait is made of it.
        self._cpu_ns_per_text += 0.05 * (record.cpu_ns / record.rows - self._cpu_ns_per_text)
        self._usage.batch(record.rows, record.tokens, record.padded_tokens, record.infer_ns)


def _key_of(request: _Request, text: Text) -> bytes:
    family = request.family
    normalize = family.tokenizer.normalize
    try:
        second = None if text.second is None else normalize(text.second)
        return cache_key(family.digest, normalize(text.first), second, request.truncate)
    except UnicodeEncodeError:
        raise InvalidInput("inputs: a text holds half of a surrogate pair; send whole characters") from None


def _settle(waiter: _Waiter, flight: _Flight, result: JobResult, *, first: bool) -> str:
    """Give a waiter its answer or its error; returns the outcome to report."""
    future = waiter.future
    if future.done():
        return "cancelled"
    if result.error is not None:
        future.set_exception(result.error)
        return "error"
    if result.logits is None:
        future.set_exception(ClientGone("the client left before its batch was formed"))
        return "cancelled"
    cpu_ns = waiter.cpu_ns + (result.cpu_ns if first else 0)
    state: CacheState = "miss" if first else "shared"
    future.set_result(Answer(result.logits, flight.variant, flight.point, waiter.request.reason, state, cpu_ns))
    return "ok" if first else "cached"


def _saved_by_fallback(family: Family, point: str, cpu_ns: int) -> int:
    """CPU time that full quality would have cost beyond `cpu_ns`, by the compiled figures of both points."""
    spent = family.points[family.rank(point)].cpu_seconds_per_1k
    return round(cpu_ns * (family.points[0].cpu_seconds_per_1k / spent - 1))
