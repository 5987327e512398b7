"""Worker threads that turn waiting jobs into batches and batches into logits.

Work-conserving: a batch is formed when a worker is free, never by a timer. Each worker runs one-thread sessions, so
its own thread's CPU clock is exactly what the batch cost. A short job that comes alone wakes no worker (`Inline`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from server.engine.batching import Batcher, BatchLimits, expected_ns
from server.engine.inline import Inline
from server.engine.runs import BatchRecord, Job, Outcome, dropped, run

log = logging.getLogger(__name__)

# How fast the mean time of a batch follows the last ones.
_BATCH_SHARE = 0.1
Key = tuple[str, str]
"""What may share a batch: version and variant."""


class Scheduler:
    """Owns the lanes and the workers. `submit` is called on the event loop, results come back on it."""

    def __init__(
        self, workers: int, limits: BatchLimits, on_batch: Callable[[BatchRecord], None] = lambda record: None
    ) -> None:
        self.limits = limits
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._batcher: Batcher[Key, Job] = Batcher()
        self._ready = threading.Condition()
        self._idle = 0
        self._closing = False
        self._inbox: deque[Job] = deque()
        self._inbox_weight = 0.0
        self._backlog_ns = 0.0
        self._batch_ns = 0.0
        self._workers = 0
        self._threads: dict[int, threading.Thread] = {}
        self._inline = Inline()
        self._continues = False
        self._patient = False
        self.resize(workers)

    @property
    def queued(self) -> int:
        """Jobs that wait for a batch."""
        return self._batcher.waiting + len(self._inbox)

    @property
    def workers(self) -> int:
        """How many batches may run at once."""
        return self._workers

    @property
    def healthy(self) -> bool:
        """Whether every worker lives."""
        return all(self._threads[number].is_alive() for number in range(self._workers))

    @property
    def has_room(self) -> bool:
        """Whether nothing waits, and a worker would stay free beside a job that came now (where there are several)."""
        return not self.queued and self._idle >= min(2, self._workers)

    @property
    def predicted_ns(self) -> float:
        """How long a job that came now would wait for its answer: what waits already, half a batch that runs, its own
        batch. By the cost model of the family until batches are measured."""
        backlog_ns = self._backlog_ns + self._inbox_weight
        return expected_ns(backlog_ns, self._workers, self._batch_ns, busy=self._idle == 0)

    def resize(self, workers: int) -> None:
        """Have so many workers from now on; those too many end after their batch."""
        with self._ready:
            self._workers = workers
            for number in range(workers):
                old = self._threads.get(number)
                if old is None or not old.is_alive():
                    thread = threading.Thread(target=self._work, args=(number,), name=f"infer-{number}", daemon=True)
                    self._threads[number] = thread
                    thread.start()
            self._ready.notify_all()

    def submit(self, job: Job, *, patient: bool = False) -> None:
        """Queue a job, also one that has come back. Jobs that arrive in one turn of the event loop reach the workers
        together. A `patient` one is never run where it arrives."""
        job.enqueued_ns = time.perf_counter_ns()
        if not self._inbox:
            self._loop.call_soon(self._flush)
        self._inbox.append(job)
        self._patient |= patient
        self._inbox_weight += job.family.weight(job.variant, len(job.tokens.ids))

    async def close(self, timeout_s: float = 5.0) -> None:
        """Let the workers finish what is queued and end; results still come back meanwhile, and so may jobs. Submit
        nothing new after."""
        deadline = time.monotonic() + timeout_s
        self._flush()
        with self._ready:
            self._closing = True
            self._ready.notify_all()
        await asyncio.to_thread(self._join, deadline)
        while self.queued and time.monotonic() < deadline:
            self._flush()
            self.resize(self._workers)  # new threads in place of those that have ended
            await asyncio.to_thread(self._join, deadline)

    def _join(self, deadline: float) -> None:
        with self._ready:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _flush(self) -> None:
        if self._continues:
            self._continues = False
            if len(self._inbox) > 1:
                self._inline.ran(crowded=True)
        patient, self._patient = self._patient, False
        if not patient and len(self._inbox) == 1 and self._runs_inline(self._inbox[0]):
            self._run_inline(self._inbox.popleft())
            return
        with self._ready:
            while self._inbox:
                job = self._inbox.popleft()
                tokens = len(job.tokens.ids)
                self._batcher.add(
                    (job.family.version, job.variant),
                    job,
                    tokens=tokens,
                    weight=job.family.weight(job.variant, tokens),
                    now_ns=job.arrived_ns or job.enqueued_ns,
                    deadline_ns=job.deadline_ns,
                    padding_share=job.family.padding_share(job.variant),
                )
            self._inbox_weight = 0.0
            self._backlog_ns = self._batcher.backlog_ns()
            self._ready.notify(min(self._batcher.waiting, self._idle))

    def _runs_inline(self, job: Job) -> bool:
        """Whether nothing waits or runs beside this job, and it is known to be short."""
        limit_ns = self.limits.inline_ns
        with self._ready:
            if not limit_ns or self._closing or self._batcher.waiting or self._idle < self._workers:
                return False
            pace = self._batcher.pace((job.family.version, job.variant))
        if pace is None or pace * self._inbox_weight > limit_ns or job.deadline_ns - job.enqueued_ns < limit_ns:
            return False
        if job.abandoned():  # a worker gives it back unrun
            return False
        return self._inline.allows()

    def _run_inline(self, job: Job) -> None:
        self._inbox_weight = 0.0
        outcome, record = run([job])
        with self._ready:
            self._measured((job.family.version, job.variant), record)
        self._loop.call_soon(self._answer_inline, outcome)

    def _answer_inline(self, outcome: Outcome) -> None:
        """One turn of the loop after the run: what arrived meanwhile has been read and is submitted in this turn."""
        before = len(self._inbox)
        self._deliver(outcome)
        self._continues = len(self._inbox) > before
        if not self._continues:  # else it is seen when the job that came back is passed on
            self._loop.call_soon(lambda: self._inline.ran(crowded=bool(self._inbox)))

    def _work(self, number: int) -> None:
        record, key = None, None
        while True:
            with self._ready:
                if record is not None and key is not None:
                    self._measured(key, record)
                if not self._wait_for_work(number):
                    return
                taken = self._batcher.take(time.perf_counter_ns(), self.limits)
                self._backlog_ns = self._batcher.backlog_ns()
                # Each job is asked once: its answer may change at any moment.
                gone = [job for job in taken.jobs if job.abandoned()]
            left = set(map(id, gone))
            jobs = [job for job in taken.jobs if id(job) not in left] if gone else taken.jobs
            key, record = taken.key, None
            outcomes = [dropped(some, late=late) for some, late in ((taken.late, True), (gone, False)) if some]
            if jobs:
                outcome, record = run(jobs)
                outcomes.append(outcome)
            for outcome in outcomes:
                try:
                    self._loop.call_soon_threadsafe(self._deliver, outcome)
                except RuntimeError:  # the loop is closed: nobody is left to tell
                    return

    def _wait_for_work(self, number: int) -> bool:
        """Called with the lock held: True when there is a job, False when this worker is to end."""
        while number < self._workers:
            if self._batcher.waiting:
                return True
            if self._closing:
                return False
            self._idle += 1
            self._ready.wait()
            self._idle -= 1
        self._ready.notify()  # it may have been woken in another's stead
        del self._threads[number]
        return False

    def _measured(self, key: Key, record: BatchRecord) -> None:
        pace = self._batcher.paces.get(key)
        if pace is not None:
            pace.measured(record.infer_ns, record.weight)
        share = _BATCH_SHARE if self._batch_ns else 1.0
        self._batch_ns += share * (record.infer_ns - self._batch_ns)

    def _deliver(self, outcome: Outcome) -> None:
        for job, result in outcome.finished:
            try:
                job.finish(result)
            except Exception:  # one that cannot take its result must not cost its batch-mates theirs
                log.exception("a result could not be handed over")
        if outcome.record is not None:
            self._on_batch(outcome.record)
