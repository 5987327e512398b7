"""What becomes of computations: answers are kept, everybody who waits is woken, and what it cost is reported.

How long it took is reported of those who waited: a job's texts make way for clients, and would pass for slow answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from server.engine.cache import AnswerCache, CachedAnswer
from server.engine.errors import EngineError
from server.engine.family import Family
from server.engine.flights import Answer, Asking, Flight, settle, settle_error
from server.engine.latency_guard import LatencyGuard
from server.engine.ports import UsageSink
from server.engine.routing import asked_first
from server.engine.runs import JobResult
from server.engine.runtime import Float32Array
from server.engine.second_level import SecondLevel, SharedAnswer


class Landing:
    """Where flights end. Used from one event loop."""

    def __init__(
        self,
        family: Family,
        cache: AnswerCache,
        second: SecondLevel | None,
        latency: LatencyGuard,
        usage: UsageSink,
        submit: Callable[[Flight], None],
    ) -> None:
        """`submit` queues a flight that goes on."""
        self.family = family
        """The version in force: answers of another are handed over, and not kept."""
        self.flights: dict[tuple[bytes, str], Flight] = {}
        """What is under way, by text and point."""
        self._cache, self._second, self._latency = cache, second, latency
        self._usage, self._submit = usage, submit

    def hit(self, kept: CachedAnswer, asking: Asking, started_ns: int, cpu_ns: int) -> Answer:
        """An answer that was kept; `cpu_ns` is what looking it up took."""
        usage, route = self._usage, asking.route
        usage.count("cache_hits")
        usage.avoided("cache", kept.cpu_ns - cpu_ns)
        total_ns = None if asking.patient else time.perf_counter_ns() - started_ns
        usage.request(kept.variant, kept.point, route.quality, "cached", cpu_ns, total_ns=total_ns)
        saved_ns = route.family.full_ns(kept.rank, kept.variant, kept.cpu_ns) - cpu_ns
        return Answer(kept.logits, kept.variant, kept.point, route.reason, "hit", cpu_ns, saved_ns=saved_ns, kept=kept)

    def land(self, flight: Flight, result: JobResult) -> None:
        """A computation ended: keep its answer and wake everyone who waits for it, unless a cascade goes on."""
        if result.dropped and self._goes_on(flight, late=result.late):
            return
        if flight.escalates(result):
            self._usage.count("escalations")
            self._submit(flight)
            return
        route, waiters = flight.route, flight.waiters
        del self.flights[flight.key, route.point]
        if result.logits is not None and route.family is self.family:
            self._keep(flight, result.logits, result.cpu_ns)
        if flight.unsure is not None:
            result.cpu_ns += flight.unsure.cpu_ns
            result.queued_ns += flight.unsure.queued_ns
        # The first who still waits owes the computation; if nobody does, the one who began it.
        owing = next((waiter for waiter in waiters if not waiter.future.done()), waiters[0])
        usage = self._usage
        ended_ns = time.perf_counter_ns()
        for waiter in waiters:
            outcome = settle(waiter, flight, result, first=waiter is owing)
            # Nothing was avoided for who got no answer, or had left before it.
            if outcome == "cached":
                usage.avoided("cache", result.cpu_ns)
            elif outcome == "ok":
                if route.saving:
                    usage.avoided(route.avoids, round(result.cpu_ns * route.saving))
                if quantized := route.family.quantized_saving(flight.variant):
                    usage.avoided("quantized", round(result.cpu_ns * quantized))
            quality, total_ns = waiter.asking.route.quality, ended_ns - waiter.started_ns
            owed_ns = waiter.cpu_ns + (result.cpu_ns if waiter is owing else 0)
            times = {"total_ns": total_ns, "queue_ns": result.queued_ns, "tokenize_ns": waiter.cpu_ns}
            if waiter.asking.patient:
                times = {}
            else:
                self._latency.note(quality, total_ns, ended_ns)
            usage.request(flight.variant, route.point, quality, outcome, owed_ns, **times)

    def _keep(self, flight: Flight, logits: Float32Array, cpu_ns: int) -> None:
        """Keep an answer that took its variant `cpu_ns`: what an equal question is spared at least."""
        point, rank = flight.kept_as
        self._cache.put(flight.key, CachedAnswer(logits, point, flight.variant, rank, cpu_ns))
        # In the second level the rank alone says which variant answered.
        if self._second is not None and (flight.unsure is None or rank != flight.route.rank):
            self._second.put(flight.key, rank, logits, cpu_ns, self._cache.ttl_s)

    def _goes_on(self, flight: Flight, *, late: bool) -> bool:
        """Queue a dropped flight again if somebody joined after the worker had dropped it, or has more time."""
        deadlines = [waiter.asking.deadline_ns for waiter in flight.waiters if not waiter.left()]
        if not deadlines or (late and max(deadlines) <= flight.deadline_ns):
            return False
        flight.deadline_ns = max(deadlines)
        self._submit(flight)
        return True

    def land_shared(self, flight: Flight, found: SharedAnswer) -> None:
        """The second level has an answer: everybody who waits has a hit."""
        route = flight.route
        del self.flights[flight.key, route.point]
        point = route.family.points[found.rank]
        kept = CachedAnswer(found.logits, point.name, asked_first(point), found.rank, found.cpu_ns)
        if route.family is self.family:
            self._cache.put(flight.key, kept, found.age_s)
        for waiter in flight.waiters:
            if waiter.future.done():
                self._usage.request(route.variant, route.point, waiter.asking.route.quality, "cancelled", waiter.cpu_ns)
            else:
                waiter.future.set_result(self.hit(kept, waiter.asking, waiter.started_ns, waiter.cpu_ns))

    def crash(self, flight: Flight, error: EngineError) -> None:
        """A flight ended before it was queued."""
        route = flight.route
        del self.flights[flight.key, route.point]
        error.counted = True
        for waiter in flight.waiters:
            outcome = settle_error(waiter, error)
            quality = waiter.asking.route.quality
            self._usage.request(route.variant, route.point, quality, outcome, waiter.cpu_ns)
