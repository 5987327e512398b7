"""The engine: a request's texts in, answers out. One per replica; used from one event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from server.engine.cache import AnswerCache, cache_key
from server.engine.errors import BackendFailure, EngineError, InputTooLarge, InvalidInput, NotReady, Overloaded
from server.engine.family import Family
from server.engine.flights import NO_TOKENS, Answer, Asking, CacheState, Flight, Waiter
from server.engine.landing import Landing
from server.engine.latency_guard import LatencyGuard
from server.engine.ports import EngineLimits, UsageSink
from server.engine.routing import Route, Router
from server.engine.runs import BatchRecord
from server.engine.savings import BatchingSavings
from server.engine.scheduler import Scheduler
from server.engine.second_level import SecondLevel
from server.engine.tokenizer import Text, Truncation
from server.shaping.policy import DialState, QualityClass

__all__ = ["Answer", "CacheState", "Engine", "EngineLimits", "UsageSink", "never_gone"]

log = logging.getLogger(__name__)

# Characters that are normalized and tokenized before other requests get a turn: a few milliseconds' worth.
CHARS_PER_TURN = 20_000
# Longer texts are tokenized in a thread of their own, which takes about a microsecond a character (18 ms for 20,000).
# Below that, the loop loses less than handing over to the thread costs everybody.
CHARS_ON_LOOP = 4_000
# With an objective, a request is refused when its answer is expected later than this share of it. The mean is what is
# expected; the slowest percent take up to twice as long (simulated and measured), and should keep 1.5 objectives.
ADMITTED_SHARE = 0.75
# From this share of it on, standard requests take the cheapest point that they may, whatever the grid: early enough
# that the queue shrinks before anybody is refused.
SPIKE_SHARE = 0.4


def never_gone() -> bool:
    """The client of a request that cannot leave (tests, in-process callers)."""
    return False


Begun = list["asyncio.Future[Answer] | Answer"]


class Engine:
    """Cache, single flight, tokenizer and scheduler around one family version at a time."""

    def __init__(
        self,
        family: Family,
        limits: EngineLimits,
        dial: DialState,
        usage: UsageSink,
        workers: int,
        second: SecondLevel | None = None,
    ) -> None:
        self.family = family
        self.dial = dial
        self.limits = limits
        self.cache = AnswerCache(limits.cache_max_bytes, limits.cache_ttl_s)
        self._second = second
        self._usage = usage
        self._batching = BatchingSavings()
        self._loop = asyncio.get_running_loop()
        self._router = Router(family, dial)
        self._latency = LatencyGuard(limits.p99_ns)
        self._preparing: set[asyncio.Task[None]] = set()
        self._encoder = ThreadPoolExecutor(1, "encode")
        self._scheduler = Scheduler(workers, limits.batch, self._record_batch)
        self._landing = Landing(family, self.cache, second, self._latency, usage, self._submit)
        self._accepting = True
        self._active = 0
        self._asked_s = float("-inf")
        self._quiet = asyncio.Event()

    @property
    def queued(self) -> int:
        """Texts that wait for a batch, or to be tokenized for one."""
        return self._scheduler.queued + len(self._preparing)

    @property
    def active(self) -> int:
        """Requests that are being answered."""
        return self._active

    @property
    def ready(self) -> bool:
        """Whether requests are accepted and every worker lives to answer them."""
        return self._accepting and self._scheduler.healthy

    @property
    def has_room(self) -> bool:
        """Whether something that can wait may be asked for now without making anybody wait."""
        return self._accepting and not self._active and self._scheduler.has_room

    @property
    def quiet_s(self) -> float:
        """Seconds since a client asked for something."""
        return self._loop.time() - self._asked_s

    @property
    def healthy(self) -> bool:
        """Whether every worker thread lives; one that died takes its share of the throughput with it."""
        return self._scheduler.healthy

    @property
    def workers(self) -> int:
        """How many batches may run at once."""
        return self._scheduler.workers

    def resize(self, workers: int) -> None:
        """Run up to so many batches at once from now on."""
        self._scheduler.resize(workers)

    def reconfigure(self, limits: EngineLimits, dial: DialState, family: Family | None = None) -> None:
        """Take new bounds, a new dial and, if one is given, another version, all at once.

        What is in flight ends as it began, on the version that it began with. Raises KeyError if the dial names a
        point that the family does not have; nothing is changed then.
        """
        newest = family or self.family
        router = Router(newest, dial)
        if newest is not self.family:
            self.family = self._landing.family = newest
            self.cache.clear()
        self.limits, self.dial, self._router = limits, dial, router
        self._latency.bounds_ns = dict(limits.p99_ns)
        self._scheduler.limits = limits.batch
        self.cache.resize(limits.cache_max_bytes, limits.cache_ttl_s)

    async def predict(
        self,
        texts: Sequence[Text],
        *,
        quality: QualityClass = "standard",
        truncate: Truncation | None = None,
        is_gone: Callable[[], bool] = never_gone,
        timeout_s: float | None = None,
        session: bytes | None = None,
        patient: bool = False,
    ) -> list[Answer]:
        """Answer every text, in order, within `timeout_s` where that is shorter than the engine's own limit. Raises an
        EngineError; if one text fails, the request fails. A `patient` request is never run on the event loop, save
        where another waits for the same answer.

        While the dial stands between two points, a standard request's `session`, or its first text where it has none,
        decides which of them answers it."""
        if not self._accepting:
            raise NotReady("the server is stopping; send the request again in a moment")
        limits = self.limits
        if len(texts) > limits.max_texts_per_request:
            raise InputTooLarge(
                f"inputs: {len(texts)} texts in one request; the limit is {limits.max_texts_per_request}"
            )
        limit_s = limits.request_timeout_s
        if timeout_s is not None and timeout_s < limit_s:
            limit_s = timeout_s
        deadline_ns = time.perf_counter_ns() + int(limit_s * 1e9)
        route = self._route(quality, texts, session)
        asking = Asking(route, truncate, is_gone, limit_s, deadline_ns, patient)
        self._active += 1
        if not patient:
            self._asked_s = self._loop.time()
        begun: Begun = []
        timer: asyncio.TimerHandle | None = None
        try:
            for text in texts:
                self._check(asking.route.family, text)
            await self._begin_all(asking, texts, begun)
            answers: list[Answer] = []
            for one in begun:
                if not isinstance(one, Answer):
                    # Set only when there is something to wait for: a hit is faster than a timer.
                    timer = timer or self._loop.call_later(limit_s, _give_up, asking, begun)
                    one = await one
                answers.append(one)
            return answers
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(begun)

    def _route(self, quality: QualityClass, texts: Sequence[Text], session: bytes | None) -> Route:
        """What answers this request."""
        if session is None:
            session = texts[0].first.encode("utf-8", "replace") if texts else b""
        guarded = self._latency.engaged(quality, time.perf_counter_ns())
        route = self._router.choose(quality, session, pressed=self._pressed, guarded=guarded)
        if route.counted is not None:
            self._usage.count(route.counted, len(texts))
        return route

    @property
    def _pressed(self) -> bool:
        """Whether what waits endangers the latency objective."""
        objective_ns = self.limits.batch.objective_ns
        return objective_ns is not None and self._scheduler.predicted_ns > SPIKE_SHARE * objective_ns

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
        if self._preparing:
            await asyncio.gather(*self._preparing, return_exceptions=True)
        await self._scheduler.close()
        self._encoder.shutdown(wait=False)
        if self._second is not None:
            await self._second.close()

    def _check(self, family: Family, text: Text) -> None:
        longest = len(text.first) if text.second is None else max(len(text.first), len(text.second))
        if longest > self.limits.max_text_chars:
            raise InputTooLarge(f"inputs: a text has {longest} characters; the limit is {self.limits.max_text_chars}")
        family.tokenizer.check(text)

    async def _begin_all(self, asking: Asking, texts: Sequence[Text], begun: Begun) -> None:
        """Begin every text; what was begun stands in `begun` even if one raises."""
        admitted, characters = False, 0
        for text in texts:
            answer = self._begin(asking, text, admitted)
            begun.append(answer)
            # A request is admitted whole: it would be a waste to refuse the rest of it.
            admitted = admitted or not isinstance(answer, Answer)
            characters += len(text.first) + len(text.second or "")
            if characters > CHARS_PER_TURN:
                characters = 0
                await asyncio.sleep(0)

    def _begin(self, asking: Asking, text: Text, admitted: bool) -> asyncio.Future[Answer] | Answer:
        """Answer from the cache, or join an equal computation in flight, or start one."""
        started_ns, cpu_before = time.perf_counter_ns(), time.thread_time_ns()
        route = asking.route
        key = _key_of(route.family, asking.truncate, text)
        kept = self.cache.get(key, route.rank)
        if kept is not None:
            return self._landing.hit(kept, asking, started_ns, time.thread_time_ns() - cpu_before)
        flight = self._landing.flights.get((key, route.point))
        late = flight is None and self._needs_time(text)
        if not late:
            self._usage.count("cache_misses")
        if flight is None:
            tokens = NO_TOKENS
            try:
                if not admitted:
                    self._admit(asking.timeout_s)
                if not late:
                    tokens = route.family.tokenizer.encode(text, truncate=asking.truncate)
            except EngineError as error:
                self._refused(route, error, time.thread_time_ns() - cpu_before)
                raise
            flight = Flight(
                self._landing.land, key, route, route.variant, tokens, asking.deadline_ns, patient=asking.patient
            )
            self._landing.flights[key, route.point] = flight
            if late:
                task = self._loop.create_task(self._prepare(flight, asking, text))
                self._preparing.add(task)
                task.add_done_callback(self._preparing.discard)
            else:
                self._submit(flight)
        flight.patient &= asking.patient
        future: asyncio.Future[Answer] = self._loop.create_future()
        flight.waiters.append(Waiter(future, asking, started_ns, time.thread_time_ns() - cpu_before))
        return future

    def _needs_time(self, text: Text) -> bool:
        """Whether a text cannot be begun at once: the second level is to be asked, or tokenizing it takes long."""
        if self._second is not None and self._second.ready:
            return True
        return len(text.first) + len(text.second or "") > CHARS_ON_LOOP

    async def _prepare(self, flight: Flight, asking: Asking, text: Text) -> None:
        """Look in the second level, tokenize and queue a text, without holding the loop up."""
        family = flight.route.family
        try:
            if self._second is not None and self._second.ready:
                found = await self._second.get(flight.key, flight.route.rank, len(family.manifest.labels))
                if found is not None and found.age_s < self.limits.cache_ttl_s:
                    self._landing.land_shared(flight, found)
                    return
            self._usage.count("cache_misses")
            if len(text.first) + len(text.second or "") > CHARS_ON_LOOP:
                encode = family.tokenizer.encode_apart
                flight.tokens, cpu_ns = await self._loop.run_in_executor(self._encoder, encode, text, asking.truncate)
            else:
                cpu_before = time.thread_time_ns()
                flight.tokens = family.tokenizer.encode(text, truncate=asking.truncate)
                cpu_ns = time.thread_time_ns() - cpu_before
            flight.waiters[0].cpu_ns += cpu_ns
        except EngineError as error:
            self._landing.crash(flight, error)
        except Exception as error:  # a flight that is lost would leave its waiters without an answer
            log.exception("a text could not be prepared")
            self._landing.crash(flight, BackendFailure(f"the text could not be prepared: {error}"))
        else:
            self._submit(flight)

    def _submit(self, flight: Flight) -> None:
        self._scheduler.submit(flight, patient=flight.patient)

    def _admit(self, timeout_s: float) -> None:
        """Raise Overloaded if the queue is full or so long that the answer would come too late."""
        queued = self.queued
        if not queued:
            return
        limits = self.limits
        if limits.batch.objective_ns is not None:
            timeout_s = min(timeout_s, ADMITTED_SHARE * limits.batch.objective_ns / 1e9)
        wait_s = self._scheduler.predicted_ns / 1e9
        if queued >= limits.max_queue_requests or wait_s > timeout_s:
            raise Overloaded(f"{queued} texts are waiting; come back after Retry-After seconds", max(1.0, wait_s))

    def _refused(self, route: Route, error: EngineError, cpu_ns: int) -> None:
        error.counted = True
        outcome = "shed" if isinstance(error, Overloaded) else "error"
        self._usage.request(route.variant, route.point, route.quality, outcome, cpu_ns)

    def _leave(self, begun: Begun) -> None:
        """A request ended, one way or another: nothing of it is waited for any more."""
        self._active -= 1
        if not self._active and not self._accepting:
            self._quiet.set()
        for one in begun:
            if not isinstance(one, Answer) and not one.cancel() and not one.cancelled():
                one.exception()  # an error beside the one that is raised: marked as seen

    def _record_batch(self, record: BatchRecord) -> None:
        usage = self._usage
        usage.batch(
            record.variant,
            record.rows,
            record.tokens,
            record.padded_tokens,
            infer_ns=record.infer_ns,
            cpu_ns=record.cpu_ns,
        )
        if saved_ns := self._batching.saved_ns(record.rows, record.cpu_ns, record.alone_ns):
            usage.avoided("batching", saved_ns)


def _give_up(asking: Asking, begun: Begun) -> None:
    """The time of a request is up: tell everybody of it who waits."""
    for one in begun:
        if not isinstance(one, Answer) and not one.done():
            one.set_exception(asking.too_late())


def _key_of(family: Family, truncate: Truncation | None, text: Text) -> bytes:
    normalize = family.tokenizer.normalize
    try:
        second = None if text.second is None else normalize(text.second)
        return cache_key(family.digest, normalize(text.first), second, truncate)
    except UnicodeEncodeError:
        raise InvalidInput("inputs: a text holds half of a surrogate pair; send whole characters") from None
