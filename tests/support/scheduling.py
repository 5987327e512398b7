"""A scheduler, and jobs of the tiny family that keep what became of them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from server.engine.batching import NO_DEADLINE_NS, BatchLimits
from server.engine.family import Family
from server.engine.runs import BatchRecord, JobResult
from server.engine.runtime import Float32Array
from server.engine.scheduler import Scheduler
from server.engine.tokenizer import Text, Tokens
from tests.support.engines import until


@dataclass(eq=False)
class TinyJob:
    """A job that keeps its result."""

    family: Family
    tokens: Tokens
    variant: str = "full"
    enqueued_ns: int = 0
    arrived_ns: int = 0
    deadline_ns: int = NO_DEADLINE_NS
    gone: bool = False
    results: list[JobResult] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def abandoned(self) -> bool:
        """Whether its client has left."""
        return self.gone

    def finish(self, result: JobResult) -> None:
        """Keep the result, and the thread it came on."""
        self.results.append(result)
        self.threads.append(threading.current_thread())

    @property
    def result(self) -> JobResult:
        """The only one."""
        (only,) = self.results
        return only


def job(family: Family, text: str, variant: str = "full") -> TinyJob:
    """A job for one text."""
    return TinyJob(family, family.tokenizer.encode(Text(text), truncate=None), variant)


class CallRuntime:
    """A runtime made of a function."""

    def __init__(self, call: Callable[[Sequence[Tokens]], Float32Array]) -> None:
        self.call = call

    def run(self, batch: Sequence[Tokens]) -> Float32Array:
        """What the function gives."""
        return self.call(batch)


def with_runtime(family: Family, call: Callable[[Sequence[Tokens]], Float32Array]) -> Family:
    """The family with a function in place of full quality's runtime."""
    return replace(family, runtimes={**family.runtimes, "full": CallRuntime(call)})


@asynccontextmanager
async def scheduling(workers: int = 1, **limits: int) -> AsyncIterator[tuple[Scheduler, list[BatchRecord]]]:
    """A scheduler until the end of the block, and the records of its batches."""
    records: list[BatchRecord] = []
    scheduler = Scheduler(workers, BatchLimits(**limits), records.append)
    try:
        yield scheduler, records
    finally:
        await scheduler.close()


async def finished(scheduler: Scheduler, jobs: Sequence[TinyJob]) -> None:
    """Submit jobs and wait until all came back."""
    for one in jobs:
        scheduler.submit(one)
    await until(lambda: all(one.results for one in jobs))


def scores(one: TinyJob) -> list[float]:
    """The logits of its result."""
    assert one.result.logits is not None
    row: list[float] = one.result.logits.tolist()
    return row
