"""Worker threads that turn waiting jobs into batches and batches into logits.

Work-conserving: a batch is formed when a worker is free, never by a timer. Each worker runs one-thread sessions, so
its own thread's CPU clock is exactly what the batch cost.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np

from server.engine.batching import BatchLimits, Lane
from server.engine.errors import BackendFailure
from server.engine.family import Family
from server.engine.runtime import Float32Array
from server.engine.tokenizer import Tokens

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of a job. Exactly one of `logits` (shape [labels]) and `error` is set, or neither if it was dropped
    because nobody waits for it any more."""

    logits: Float32Array | None
    error: BackendFailure | None
    cpu_ns: int
    queued_ns: int

    @property
    def dropped(self) -> bool:
        """Whether the job never ran."""
        return self.logits is None and self.error is None


class Job(Protocol):
    """One text on its way through the runtime."""

    tokens: Tokens
    family: Family
    variant: str
    enqueued_ns: int

    def abandoned(self) -> bool:
        """Whether nobody waits for it any more. Called by the workers, with their lock held."""
        ...

    def finish(self, result: JobResult) -> None:
        """Take what became of it. Called once for each `submit`, on the event loop."""
        ...


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """Shape and cost of one run, for the metrics."""

    variant: str
    rows: int
    tokens: int
    padded_tokens: int
    cpu_ns: int
    infer_ns: int


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a worker hands to the event loop."""

    finished: Sequence[tuple[Job, JobResult]]
    record: BatchRecord | None = None


class Scheduler:
    """Owns the lanes and the workers. `submit` is called on the event loop, results come back on it."""

    def __init__(
        self, workers: int, limits: BatchLimits, on_batch: Callable[[BatchRecord], None] = lambda record: None
    ) -> None:
        self.limits = limits
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[tuple[str, str], Lane[Job]] = {}
        self._ready = threading.Condition()
        self._arrivals = 0
        self._queued = 0
        self._idle = 0
        self._closing = False
        self._inbox: deque[Job] = deque()
        self._flush_due = False
        self._threads = [
            threading.Thread(target=self._work, name=f"infer-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Jobs that wait for a batch."""
        return self._queued + len(self._inbox)

    @property
    def healthy(self) -> bool:
        """Whether every worker lives."""
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, job: Job) -> None:
        """Queue a job. Jobs that arrive in one turn of the event loop reach the workers together."""
        job.enqueued_ns = time.perf_counter_ns()
        self._inbox.append(job)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Let the workers finish what is queued and end; results still come back meanwhile. Submit nothing after."""
        self._flush()
        with self._ready:
            self._closing = True
            self._ready.notify_all()
        await asyncio.to_thread(self._join, timeout_s)

    def _join(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _flush(self) -> None:
        self._flush_due = False
        with self._ready:
            while self._inbox:
                job = self._inbox.popleft()
                key = (job.family.version, job.variant)
                lane = self._lanes.get(key)
                if lane is None:
                    lane = self._lanes[key] = Lane()
                self._arrivals += 1
                self._queued += 1
                lane.add(job, len(job.tokens), self._arrivals)
            self._ready.notify(min(self._queued, self._idle))

    def _work(self) -> None:
        while True:
            with self._ready:
                while not self._queued and not self._closing:
                    self._idle += 1
                    self._ready.wait()
                    self._idle -= 1
                if not self._queued:
                    return
                jobs, dropped = self._next_batch()
            outcomes = [_dropped(dropped)] if dropped else []
            outcomes += [_run(jobs)] if jobs else []
            for outcome in outcomes:
                try:
                    self._loop.call_soon_threadsafe(self._deliver, outcome)
                except RuntimeError:  # the loop is closed: nobody is left to tell
                    return

    def _next_batch(self) -> tuple[list[Job], list[Job]]:
        """Called with the lock held: the next batch, of the lane whose head has waited longest, and the jobs of it that
        nobody waits for any more. Each job is asked once: its answer may change at any moment."""
        key, lane = min(self._lanes.items(), key=lambda item: item[1].oldest_order)
        jobs: list[Job] = []
        dropped: list[Job] = []
        for job in lane.take(self.limits):
            (dropped if job.abandoned() else jobs).append(job)
        if not len(lane):
            del self._lanes[key]
        self._queued -= len(jobs) + len(dropped)
        return jobs, dropped

    def _deliver(self, outcome: _Outcome) -> None:
        for job, result in outcome.finished:
            try:
                job.finish(result)
            except Exception:  # one that cannot take its result must not cost its batch-mates theirs
                log.exception("a result could not be handed over")
        if outcome.record is not None:
            self._on_batch(outcome.record)


def _dropped(jobs: list[Job]) -> _Outcome:
    now_ns = time.perf_counter_ns()
    return _Outcome([(job, JobResult(None, None, 0, now_ns - job.enqueued_ns)) for job in jobs])


def _run(jobs: list[Job]) -> _Outcome:
    """Run one batch. If the runtime refuses the batch as a whole, each row is tried alone, so that only the poisonous
    ones fail."""
    started_ns, cpu_before = time.perf_counter_ns(), time.thread_time_ns()
    family, variant = jobs[0].family, jobs[0].variant
    rows = _answers(jobs)
    if isinstance(rows, BackendFailure):
        alone = [_answers([job]) for job in jobs] if len(jobs) > 1 else [rows]
        rows = [answer if isinstance(answer, BackendFailure) else answer[0] for answer in alone]
    cpu_ns = time.thread_time_ns() - cpu_before
    infer_ns = time.perf_counter_ns() - started_ns
    lengths = [len(job.tokens) for job in jobs]
    weight = family.manifest.variant(variant).cost.weight
    finished = [
        (job, JobResult(*_logits_or_error(row), share, started_ns - job.enqueued_ns))
        for job, row, share in zip(jobs, rows, split(cpu_ns, [weight(n) for n in lengths]), strict=True)
    ]
    record = BatchRecord(variant, len(jobs), sum(lengths), len(jobs) * max(lengths), cpu_ns, infer_ns)
    return _Outcome(finished, record)


def _answers(jobs: list[Job]) -> list[Float32Array | BackendFailure] | BackendFailure:
    """Logits (or a failure) of each row, or the one failure of the whole run."""
    try:
        logits = jobs[0].family.runtimes[jobs[0].variant].run([job.tokens for job in jobs])
        sound = np.logical_and.reduce(np.isfinite(logits), axis=1)
        # A copy, because a row alone would keep its whole batch in memory for as long as the cache keeps it.
        return [
            row.copy() if fine else BackendFailure("the model gave a non-finite score for this text")
            for row, fine, _ in zip(logits, sound, jobs, strict=True)
        ]
    except BackendFailure as failure:
        return failure
    except Exception as error:  # a worker that dies would leave its batch without an answer
        log.exception("a run failed")
        return BackendFailure(f"the runtime failed: {error}")


def _logits_or_error(row: Float32Array | BackendFailure) -> tuple[Float32Array | None, BackendFailure | None]:
    return (None, row) if isinstance(row, BackendFailure) else (row, None)


def split(total: int, weights: Sequence[float]) -> list[int]:
    """Share a whole number by weights so that the parts add up to it exactly.

    Each cut falls at the rounded running sum, so a part is off its exact share by less than one. Weights are positive
    and finite; no part is negative if `total` is not.
    """
    running = list(accumulate(weights))
    cuts = [round(total * (upto / running[-1])) for upto in running[:-1]]
    return [end - start for start, end in pairwise([0, *cuts, total])]
