"""What the engine keeps while a text is answered: who asked, what for, and the computation that they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from server.engine.cache import CachedAnswer
from server.engine.errors import ClientGone, DeadlineExceeded, EngineError, Overloaded
from server.engine.family import Family
from server.engine.routing import Route
from server.engine.runs import JobResult
from server.engine.runtime import Float32Array
from server.engine.tokenizer import Tokens, Truncation

CacheState = Literal["hit", "miss", "shared"]


@dataclass(slots=True)
class Answer:
    """Logits (float32, shape [labels]) of one text and what they cost.

    Tokenizing, waiting and the run of its batch ended at `ended_ns` (of `time.perf_counter_ns`); all 0 for a hit, which
    has the cache's entry as `kept`. Where a cascade's first variant was unsure, waiting and run are the first's, and
    `escalate_ns` is what it took from then until the second's run ended; else 0. `saved_ns` is the CPU time that full
    quality would have taken, computed anew, less `cpu_ns` without tokenizing: an estimate by the compiler's figures,
    below 0 where this took more (0 for a computed answer of full quality).
    """

    logits: Float32Array
    variant: str
    point: str
    reason: str
    cache: CacheState
    cpu_ns: int
    tokenize_ns: int = 0
    queue_ns: int = 0
    infer_ns: int = 0
    ended_ns: int = 0
    escalate_ns: int = 0
    saved_ns: int = 0
    kept: CachedAnswer | None = None


@dataclass(slots=True, eq=False)
class Asking:
    """What the texts of one request share. `deadline_ns` is of `time.perf_counter_ns`. Nobody waits for a `patient` one
    (a job's): it may not hold up the event loop."""

    route: Route
    truncate: Truncation | None
    is_gone: Callable[[], bool]
    timeout_s: float
    deadline_ns: int
    patient: bool = False

    def too_late(self) -> DeadlineExceeded:
        """What is said to those who waited too long."""
        return DeadlineExceeded(f"no answer within {self.timeout_s:g} s; the server is busy, try again later")


@dataclass(slots=True, eq=False)
class Waiter:
    """One text of one request, waiting for a computation. `cpu_ns` is what it cost so far."""

    future: asyncio.Future[Answer]
    asking: Asking
    started_ns: int
    cpu_ns: int

    def left(self) -> bool:
        """Whether nobody waits here any more."""
        return self.future.done() or self.asking.is_gone()


NO_TOKENS = Tokens([])


@dataclass(slots=True, eq=False)
class Flight:
    """One computation that several equal texts may wait for; the scheduler's job. `tokens` may come later.

    `variant` computes it for now. `unsure` is what came of a cascade's first variant, once the second is asked. It is
    `patient` as long as everybody is who waits for it.
    """

    on_landing: Callable[[Flight, JobResult], None]
    key: bytes
    route: Route
    variant: str
    tokens: Tokens
    deadline_ns: int
    waiters: list[Waiter] = field(default_factory=list)
    enqueued_ns: int = 0
    arrived_ns: int = 0
    unsure: JobResult | None = None
    patient: bool = False

    @property
    def family(self) -> Family:
        """The version that computes it."""
        return self.route.family

    @property
    def kept_as(self) -> tuple[str, int]:
        """Name and rank of the point whose answer this is, for the cache: one that escalated is as good as any of the
        second variant, and may serve stricter classes than those that the cascade answers."""
        escalation = self.route.escalation
        if self.unsure is None or escalation is None or escalation.alone is None:
            return self.route.point, self.route.rank
        return escalation.alone

    def full_ns(self, cpu_ns: int) -> int:
        """What full quality would have taken for an answer that took `cpu_ns`, those of an unsure variant included."""
        rank = self.route.rank
        if self.unsure is not None and rank:
            cpu_ns -= self.unsure.cpu_ns
        return self.family.full_ns(rank, self.variant, cpu_ns)

    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(waiter.left() for waiter in self.waiters)

    def finish(self, result: JobResult) -> None:
        """Hand over what became of it."""
        self.on_landing(self, result)

    def escalates(self, result: JobResult) -> bool:
        """Whether this is an unsure answer of a cascade's first variant; the second is to compute it then."""
        escalation = self.route.escalation
        if escalation is None or self.unsure is not None or result.logits is None:
            return False
        if not escalation.doubts(result.logits):
            return False
        self.unsure, self.variant, self.arrived_ns = result, escalation.variant, self.enqueued_ns
        return True


def settle(waiter: Waiter, flight: Flight, result: JobResult, *, first: bool) -> str:
    """Give a waiter its answer or its error; returns the outcome to report."""
    future = waiter.future
    if future.done():
        return "cancelled"
    if result.error is not None:
        future.set_exception(result.error)
        return "error"
    if result.logits is None:
        too_late = waiter.asking.too_late() if result.late else None
        future.set_exception(too_late or ClientGone("the client left before its batch was formed"))
        return "cancelled"
    cpu_ns = waiter.cpu_ns + (result.cpu_ns if first else 0)
    state: CacheState = "miss" if first else "shared"
    run, ended_ns = flight.unsure or result, result.ended_ns
    times = (waiter.cpu_ns, run.queued_ns, run.infer_ns, ended_ns, ended_ns - run.ended_ns)
    saved_ns = flight.full_ns(result.cpu_ns) - (result.cpu_ns if first else waiter.cpu_ns)
    reason, point = waiter.asking.route.reason, flight.route.point
    future.set_result(Answer(result.logits, flight.variant, point, reason, state, cpu_ns, *times, saved_ns))
    return "ok" if first else "cached"


def settle_error(waiter: Waiter, error: EngineError) -> str:
    """Give a waiter an error that came before its batch; returns the outcome to report."""
    if waiter.future.done():
        return "cancelled"
    waiter.future.set_exception(error)
    return "shed" if isinstance(error, Overloaded) else "error"
