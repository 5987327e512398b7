"""Worker threads that turn waiting jobs into batches and batches into logits.

Work-conserving: a batch is formed when a worker is free, never by a timer. Each worker runs one-thread sessions, so
its own thread's CPU clock is exactly what the batch cost.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from server.engine.batching import BatchLimits, Lane
from server.engine.errors import BackendFailure
from server.engine.family import Family
from server.engine.runtime import Float32Array
from server.engine.tokenizer import Tokens


@dataclass(slots=True)
class Job:
    """One text on its way through the runtime."""

    tokens: Tokens
    family: Family
    variant: str
    abandoned: Callable[[], bool]
    finish: Callable[[JobResult], None]
    enqueued_ns: int = 0


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of a job. Exactly one of `logits` (shape [labels]) and `error` is set, or neither if it was dropped
    because nobody waits for it any more."""

    logits: Float32Array | None
    error: BackendFailure | None
    cpu_ns: int
    queued_ns: int
    infer_ns: int

    @property
    def dropped(self) -> bool:
        """Whether the job never ran."""
        return self.logits is None and self.error is None


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """Shape and cost of one run, for the metrics."""

    variant: str
    rows: int
    tokens: int
    padded_tokens: int
    cpu_ns: int
    infer_ns: int


@dataclass(slots=True)
class _Outcome:
    jobs: list[Job]
    results: list[JobResult]
    record: BatchRecord | None = None
    dropped: list[Job] = field(default_factory=list)


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

    def submit(self, job: Job) -> None:
        """Queue a job. Jobs that arrive in one turn of the event loop reach the workers together."""
        job.enqueued_ns = time.perf_counter_ns()
        self._inbox.append(job)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

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

    def close(self, timeout_s: float = 5.0) -> None:
        """Let the workers finish what is queued and end."""
        with self._ready:
            self._closing = True
            self._ready.notify_all()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

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
            outcome = _run(jobs) if jobs else _Outcome([], [])
            outcome.dropped = dropped
            try:
                self._loop.call_soon_threadsafe(self._deliver, outcome)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                return

    def _next_batch(self) -> tuple[list[Job], list[Job]]:
        """Called with the lock held: the next batch of the lane whose head has waited longest."""
        dropped: list[Job] = []
        for key in list(self._lanes):
            dropped += self._lanes[key].discard(lambda job: job.abandoned())
            if not len(self._lanes[key]):
                del self._lanes[key]
        self._queued -= len(dropped)
        if not self._lanes:
            return [], dropped
        lane = min(self._lanes.values(), key=lambda lane: lane.oldest_order)
        jobs = lane.take(self.limits)
        self._queued -= len(jobs)
        return jobs, dropped

    def _deliver(self, outcome: _Outcome) -> None:
        for job in outcome.dropped:
            queued_ns = time.perf_counter_ns() - job.enqueued_ns
            job.finish(JobResult(None, None, 0, queued_ns, 0))
        for job, result in zip(outcome.jobs, outcome.results, strict=True):
            job.finish(result)
        if outcome.record is not None:
            self._on_batch(outcome.record)


def _run(jobs: list[Job]) -> _Outcome:
    """Run one batch. If the runtime refuses the batch as a whole, each row is tried alone, so that only the poisonous
    ones fail."""
    started_ns, cpu_before = time.perf_counter_ns(), time.thread_time_ns()
    family, variant = jobs[0].family, jobs[0].variant
    runtime = family.runtimes[variant]
    rows: list[Float32Array | BackendFailure]
    try:
        rows = _finite(runtime.run([job.tokens for job in jobs]))
    except BackendFailure as error:
        rows = [error] if len(jobs) == 1 else [_run_alone(job) for job in jobs]
    cpu_ns = time.thread_time_ns() - cpu_before
    infer_ns = time.perf_counter_ns() - started_ns
    weights = [family.manifest.variant(variant).cost.weight(len(job.tokens)) for job in jobs]
    results = [
        JobResult(
            None if isinstance(row, BackendFailure) else row,
            row if isinstance(row, BackendFailure) else None,
            share,
            started_ns - job.enqueued_ns,
            infer_ns,
        )
        for job, row, share in zip(jobs, rows, split(cpu_ns, weights), strict=True)
    ]
    lengths = [len(job.tokens) for job in jobs]
    record = BatchRecord(variant, len(jobs), sum(lengths), len(jobs) * max(lengths), cpu_ns, infer_ns)
    return _Outcome(jobs, results, record)


def _run_alone(job: Job) -> Float32Array | BackendFailure:
    try:
        return _finite(job.family.runtimes[job.variant].run([job.tokens]))[0]
    except BackendFailure as error:
        return error


def _finite(logits: Float32Array) -> list[Float32Array | BackendFailure]:
    finite: list[bool] = list(np.isfinite(logits).all(axis=1))
    return [
        row if sound else BackendFailure("the model gave a non-finite score for this text")
        for row, sound in zip(logits, finite, strict=True)
    ]


def split(total: int, weights: Sequence[float]) -> list[int]:
    """Share an integer by weights so that the parts add up to it exactly (each cut falls at a rounded running sum)."""
    whole = sum(weights)
    parts, given, running = [], 0, 0.0
    for weight in weights:
        running += weight
        upto = round(total * (running / whole))
        parts.append(upto - given)
        given = upto
    if parts:
        parts[-1] += total - given
    return parts
