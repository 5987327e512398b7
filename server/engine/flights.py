"""What the engine keeps while a text is answered: who asked, what for, and the computation that they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from server.engine.cache import CachedAnswer
from server.engine.errors import ClientGone, DeadlineExceeded, EngineError, Overloaded
from server.engine.family import Family
from server.engine.runs import JobResult
from server.engine.runtime import Float32Array
from server.engine.tokenizer import Tokens, Truncation
from server.shaping.policy import QualityClass

CacheState = Literal["hit", "miss", "shared"]


@dataclass(slots=True)
class Answer:
    """Logits (float32, shape [labels]) of one text and what they cost.

    Tokenizing, waiting and the run of its batch ended at `ended_ns` (of `time.perf_counter_ns`); all 0 for a hit, which
    has the cache's entry as `kept`.
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
    kept: CachedAnswer | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a class for now. `saving` is how much more full quality would cost, as a share of this point."""

    family: Family
    quality: QualityClass
    point: str
    rank: int
    variant: str
    reason: str
    saving: float


@dataclass(slots=True, eq=False)
class Asking:
    """What the texts of one request share. `deadline_ns` is of `time.perf_counter_ns`."""

    route: Route
    truncate: Truncation | None
    is_gone: Callable[[], bool]
    timeout_s: float
    deadline_ns: int

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
    """One computation that several equal texts may wait for; the scheduler's job. `tokens` may come later."""

    on_landing: Callable[[Flight, JobResult], None]
    key: bytes
    route: Route
    tokens: Tokens
    deadline_ns: int
    waiters: list[Waiter] = field(default_factory=list)
    enqueued_ns: int = 0

    @property
    def family(self) -> Family:
        """The version that computes it."""
        return self.route.family

    @property
    def variant(self) -> str:
        """The variant that computes it."""
        return self.route.variant

    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(waiter.left() for waiter in self.waiters)

    def finish(self, result: JobResult) -> None:
        """Hand over what became of it."""
        self.on_landing(self, result)


def settle(waiter: Waiter, route: Route, result: JobResult, *, first: bool) -> str:
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
    reason, times = waiter.asking.route.reason, (waiter.cpu_ns, result.queued_ns, result.infer_ns, result.ended_ns)
    future.set_result(Answer(result.logits, route.variant, route.point, reason, state, cpu_ns, *times))
    return "ok" if first else "cached"


def settle_error(waiter: Waiter, error: EngineError) -> str:
    """Give a waiter an error that came before its batch; returns the outcome to report."""
    if waiter.future.done():
        return "cancelled"
    waiter.future.set_exception(error)
    return "shed" if isinstance(error, Overloaded) else "error"
