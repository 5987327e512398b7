"""One batch through the runtime: everybody's answer, error and share of the cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np

from server.engine.errors import BackendFailure
from server.engine.family import Family
from server.engine.runtime import Float32Array
from server.engine.tokenizer import Tokens

log = logging.getLogger(__name__)


@dataclass(slots=True)
class JobResult:
    """What became of a job. Exactly one of `logits` (shape [labels]) and `error` is set, or neither if it was dropped:
    `late` because its deadline cannot be met any more, else because nobody waits for it. Its run ended at `ended_ns`
    (of `time.perf_counter_ns`)."""

    logits: Float32Array | None
    error: BackendFailure | None
    cpu_ns: int
    queued_ns: int
    infer_ns: int = 0
    ended_ns: int = 0
    late: bool = False

    @property
    def dropped(self) -> bool:
        """Whether the job never ran."""
        return self.logits is None and self.error is None


class Job(Protocol):
    """One text on its way through the runtime. Times are of `time.perf_counter_ns`."""

    tokens: Tokens
    variant: str
    """The variant that answers."""
    enqueued_ns: int
    arrived_ns: int
    """When it was queued for the first time, if another variant was asked before this one; else 0."""
    deadline_ns: int

    @property
    def family(self) -> Family:
        """The version that answers."""
        ...

    def abandoned(self) -> bool:
        """Whether nobody waits for it any more. Called by the workers, with their lock held."""
        ...

    def finish(self, result: JobResult) -> None:
        """Take what became of it. Called once for each `submit`, on the event loop."""
        ...


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """Shape and cost of one run. `weight` is that of its texts by the cost model, about nanoseconds; `alone_ns` what
    they take one by one by the compiler's figures, 0 if unknown."""

    variant: str
    rows: int
    tokens: int
    padded_tokens: int
    cpu_ns: int
    infer_ns: int
    weight: float
    alone_ns: float = 0.0


@dataclass(slots=True)
class Outcome:
    """What a worker hands to the event loop."""

    finished: Sequence[tuple[Job, JobResult]]
    record: BatchRecord | None = None


def dropped(jobs: Sequence[Job], *, late: bool) -> Outcome:
    """The outcome of jobs that are not run."""
    now_ns = time.perf_counter_ns()
    return Outcome([(job, JobResult(None, None, 0, now_ns - job.enqueued_ns, late=late)) for job in jobs])


def run(jobs: Sequence[Job]) -> tuple[Outcome, BatchRecord]:
    """Run one batch. If the runtime refuses the batch as a whole, each row is tried alone, so that only the poisonous
    ones fail."""
    started_ns, cpu_before = time.perf_counter_ns(), time.thread_time_ns()
    family, variant = jobs[0].family, jobs[0].variant
    rows = _answers(jobs)
    if isinstance(rows, BackendFailure):
        alone = [_answers([job]) for job in jobs] if len(jobs) > 1 else [rows]
        rows = [answer if isinstance(answer, BackendFailure) else answer[0] for answer in alone]
    cpu_ns = time.thread_time_ns() - cpu_before
    ended_ns = time.perf_counter_ns()
    infer_ns = ended_ns - started_ns
    lengths = [len(job.tokens.ids) for job in jobs]
    weights = [family.weight(variant, length) for length in lengths]
    finished = [
        (job, JobResult(*_logits_or_error(row), share, started_ns - job.enqueued_ns, infer_ns, ended_ns))
        for job, row, share in zip(jobs, rows, split(cpu_ns, weights), strict=True)
    ]
    padded = len(jobs) * max(lengths)
    alone_ns = family.alone_ns(variant, lengths)
    record = BatchRecord(variant, len(jobs), sum(lengths), padded, cpu_ns, infer_ns, sum(weights), alone_ns)
    return Outcome(finished, record), record


def _answers(jobs: Sequence[Job]) -> list[Float32Array | BackendFailure] | BackendFailure:
    """Logits (or a failure) of each row, or the one failure of the whole run."""
    try:
        logits = jobs[0].family.runtimes[jobs[0].variant].run([job.tokens for job in jobs])
        sound = np.logical_and.reduce(np.isfinite(logits), axis=1).tolist()
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
