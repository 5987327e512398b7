"""The owner of the jobs: one in the cluster, in the process that looks at the grid.

Texts are leased to whoever asks for work while it is a job's turn (`server.jobs.schedule`); what a lease brings is
kept once, also if it was computed twice. A lease that is neither given nor given back for a while is lost, and its
texts are leased again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import structlog

from energy.grid.expectation import expect
from energy.grid.ladder import Outlook
from models.store import write_atomic
from server.engine.errors import InputTooLarge, InvalidInput, NotReady, Overloaded
from server.job_settings import JobsSettings
from server.jobs.errors import JobConflict, JobStoreError, UnknownJob
from server.jobs.job import Computed, Job, Lease, Wanted, bounded, iso
from server.jobs.schedule import FIRST_PACE_S, OpenJob, Schedule, Turn
from server.jobs.store import JobStore, Metered
from server.node.jobs_state import FILE_NAME as STATE_FILE
from server.settings import Settings
from server.start_error import StartError

log = structlog.get_logger(__name__)

T = TypeVar("T")
LEASE_TIMEOUT_S = 120.0
LEASE_UNITS, URGENT_UNITS = 1_500, 6_000
"""Work in a lease, in characters: a few texts, so that whoever comes meanwhile hardly waits for them."""
LEASE_TEXTS = 16
PAGE_BYTES = 16 << 20
"""Of results at once: a family of thousands of labels says a hundred kilobytes of each text."""
HOLD_S, MOST_HOLD_S = 0.5, 60.0
"""Pause after results that the file did not keep, doubled each time: they would only be computed in vain again."""
LOOK_EVERY_S = 60.0
STATE_EVERY_S = 1.0
PACE = "pace_s"
HOUR_S, DAY_S = 3600.0, 86_400.0


@dataclass
class Out:
    """A lease that is out."""

    job_id: str
    numbers: list[int]
    units: int
    taken_s: float
    expires_s: float
    """Both by the monotone clock: the grid's may be set."""


class JobDesk:
    """A `JobsPort`. `clock` gives monotone real seconds."""

    def __init__(
        self,
        path: Path,
        limits: JobsSettings,
        grid: Outlook,
        state_file: Path,
        *,
        speed: float = 1.0,
        pue: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the file. `speed` is how many seconds of the grid's clock go by in a real one. Raises JobStoreError."""
        self._limits, self._grid, self._state_file, self._clock = limits, grid, state_file, clock
        self._speed, self._pue = speed, pue
        self._store = JobStore(path)
        self._thread = ThreadPoolExecutor(1, "jobs")
        pace_s = self._store.remembered(PACE) or FIRST_PACE_S
        # Kept in real seconds: the next run may play a recording at another speed.
        self._schedule = Schedule(limits.margin_s, pace_s * speed)
        self._schedule.jobs = {job.id: OpenJob(job) for job in self._store.open_jobs()}
        self._totals = self._store.totals()
        self._out: dict[int, Out] = {}
        # Unlike those of the run before: a replica may outlive it, and give what it took from it to this one.
        self._lease_ids = itertools.count(secrets.randbits(62))
        self._given_s = self._held_until_s = float("-inf")
        self._hold_s = HOLD_S
        self._taking = asyncio.Lock()
        self._changed = asyncio.Event()
        self._entering = 0
        """Jobs that are being written: they take room already."""
        self._work = asyncio.Event()
        self._closed = False
        self._recorded: dict[str, float] = {}
        if self._schedule.jobs:
            log.info("jobs_found", open=len(self._schedule.jobs), path=str(path))

    # For clients

    async def submit(self, wanted: Wanted) -> tuple[dict[str, Any], bool]:
        """See `JobsPort`."""
        made = await self._call(self._store.made_before, wanted)
        if made is not None:  # whatever is too late or too much by now: it was taken
            return self._describe(made), False
        limits, now_s = self._limits, self._now_s()
        if len(wanted.texts) > limits.max_texts_per_job:
            raise InputTooLarge(f"inputs: {len(wanted.texts)} texts in a job; the limit is {limits.max_texts_per_job}")
        if wanted.deadline_s <= now_s:
            raise InvalidInput(f"deadline: {iso(wanted.deadline_s)} is past, it is {iso(now_s)}; give a later one")
        if wanted.deadline_s > now_s + limits.max_deadline_days * DAY_S:
            raise InvalidInput(f"deadline: more than {limits.max_deadline_days:g} days from now; give a nearer one")
        if len(self._schedule.jobs) + self._entering >= limits.max_open_jobs:
            raise Overloaded(f"{limits.max_open_jobs} jobs are open already; come back after Retry-After seconds", 60.0)
        self._entering += 1
        try:
            return await self._enter(wanted, now_s)
        finally:
            self._entering -= 1

    async def _enter(self, wanted: Wanted, now_s: float) -> tuple[dict[str, Any], bool]:
        """Write a job down that may be taken; one that was meanwhile made with the same key is told."""
        if await self._call(lambda: self._store.size_bytes) >= self._limits.max_stored_bytes:
            raise Overloaded("the jobs' file is full; come back after Retry-After seconds", 600.0)
        job, new = await self._call(self._store.add, wanted, now_s, self._grams_per_kwh())
        if new:
            self._schedule.jobs[job.id] = OpenJob(job, deque(range(job.texts)))
            log.info("job_taken", job=job.id, texts=job.texts, deadline=iso(job.deadline_s))
            self._changed.set()
        return self._describe(job), new

    async def listed(self, owner: str, state: str | None, after: str | None, limit: int) -> list[dict[str, Any]]:
        """See `JobsPort`."""
        running = self._running
        jobs = await self._call(self._store.listed, owner, state, after, limit, running)
        return [self._describe(job, running) for job in jobs]

    async def show(self, owner: str, job_id: str) -> dict[str, Any]:
        """See `JobsPort`."""
        return self._describe(await self._get(owner, job_id))

    async def results(self, owner: str, job_id: str, start: int, limit: int) -> list[bytes]:
        """See `JobsPort`."""
        job = await self._get(owner, job_id)
        if job.state == "cancelled":
            raise JobConflict("job: was cancelled, and has no results; submit it anew with a new idempotency key")
        if job.state != "done":
            raise JobConflict(f"job: is not done ({job.done} of {job.texts} texts); ask again later")
        return await self._call(self._store.results, job_id, start, limit, PAGE_BYTES)

    async def cancel(self, owner: str, job_id: str) -> dict[str, Any]:
        """See `JobsPort`."""
        await self._get(owner, job_id)
        job = await self._call(self._store.cancel, job_id, self._now_s())
        if self._schedule.jobs.pop(job_id, None) is not None:
            self._totals["cancelled"] += 1
            self._changed.set()
        return self._describe(job)

    async def now_s(self) -> float:
        """See `JobsPort`."""
        return self._now_s()

    # For workers

    async def take(self, wait_s: float) -> Lease | None:
        """See `JobsPort`."""
        deadline = self._clock() + wait_s
        while (left_s := deadline - self._clock()) > 0 and not self._closed:
            if (held_s := self._held_until_s - self._clock()) > 0:
                await asyncio.sleep(min(held_s, left_s, STATE_EVERY_S))
                continue
            async with self._taking:
                lease = await self._lease()
            if lease is not None:
                return lease
            with suppress(TimeoutError):
                # Not wait_for, which may swallow a cancellation that comes with what it waits for.
                async with asyncio.timeout(left_s):
                    await self._work.wait()
        return None

    async def _lease(self) -> Lease | None:
        planned = bool(self._schedule.turns)
        turn = self._schedule.next_turn()
        if turn is None:
            self._work.clear()
            if planned:  # what this period was planned to be used for is used up; there may be more
                self._changed.set()
            return None
        one = self._schedule.jobs[turn.job_id]
        if one.pending is None:
            one.pending = deque(await self._call(self._store.uncomputed, turn.job_id))
        numbers = [one.pending.popleft() for _ in range(min(LEASE_TEXTS, len(one.pending)))]
        if not numbers:
            return None
        try:
            texts = await self._call(self._store.texts, turn.job_id, numbers)
        except BaseException:
            one.pending.extendleft(reversed(numbers))
            raise
        if self._schedule.jobs.get(turn.job_id) is not one:  # cancelled meanwhile
            return None
        texts, units = bounded(texts, URGENT_UNITS if turn.urgent else LEASE_UNITS)
        one.pending.extendleft(reversed(numbers[len(texts) :]))
        return self._sign(turn, one, texts, units)

    def _sign(self, turn: Turn, one: OpenJob, texts: list[tuple[int, str, str | None]], units: int) -> Lease:
        lease_id = next(self._lease_ids)
        self._schedule.took(turn, units)
        numbers = [number for number, _, _ in texts]
        self._out[lease_id] = Out(one.job.id, numbers, units, self._clock(), self._clock() + LEASE_TIMEOUT_S)
        return Lease(lease_id, one.job.id, texts, one.job.truncate, one.job.raw_scores, turn.urgent)

    async def give(self, lease_id: int, job_id: str, computed: Sequence[Computed], joules: float | None) -> None:
        """See `JobsPort`."""
        kept: set[int] = set()
        try:
            job = await self._keep(self._out.get(lease_id), job_id, computed, joules)
            kept = {result.number for result in computed}
            self._hold_s = HOLD_S
        except NotReady:
            self._held_until_s = self._clock() + self._hold_s
            self._hold_s = min(2 * self._hold_s, MOST_HOLD_S)
            raise
        finally:
            lost = not self._end(lease_id, kept)
        one = self._schedule.jobs.get(job_id)
        if one is None:
            return
        one.job = job
        if lost and one.pending:  # they were to be leased again
            one.pending = deque(number for number in one.pending if number not in kept)
        if job.state == "done":
            del self._schedule.jobs[job.id]
            log.info("job_done", job=job.id, late=job.late, **job.carbon)
        self._totals = await self._call(self._store.totals)
        if not self._schedule.turns:
            self._changed.set()

    async def _keep(self, out: Out | None, job_id: str, computed: Sequence[Computed], joules: float | None) -> Job:
        """Keep what came of a lease, `out` if it was not lost, and learn from how long it took."""
        now_s, grams = self._now_s(), self._grams_per_kwh()
        if out is not None:
            ended_s = self._clock()
            since_s, self._given_s = max(out.taken_s, self._given_s), ended_s
            share = len(computed) / len(out.numbers)
            self._schedule.measured((ended_s - since_s) * self._speed, out.units * share)
        metered = None if joules is None or grams is None else Metered(joules, grams * self._pue)
        return await self._call(self._store.keep, job_id, computed, metered, now_s)

    async def give_back(self, lease_id: int) -> None:
        """See `JobsPort`."""
        self._end(lease_id, ())

    def _end(self, lease_id: int, kept: Collection[int]) -> bool:
        """A lease is over: what was not kept of it is leased again. False if it was lost before."""
        out = self._out.pop(lease_id, None)
        if out is None:
            return False
        one = self._schedule.jobs.get(out.job_id)
        missing = [number for number in out.numbers if number not in kept]
        if one is not None and missing:
            if one.pending is not None:
                one.pending.extendleft(reversed(missing))
            self._changed.set()
        return True

    # The loop

    async def run(self) -> None:
        """Plan, again whenever something changed, until cancelled."""
        forget_at = self._clock()
        while True:
            self._changed.clear()
            try:
                await self._plan()
                if self._clock() >= forget_at:
                    forget_at = self._clock() + LOOK_EVERY_S
                    await self._tidy()
                await self._record()
            except Exception:
                log.exception("jobs_step_failed")
            await asyncio.sleep(self._schedule.rest_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._changed.wait()

    async def _plan(self) -> None:
        schedule, now_s = self._schedule, self._now_s()
        jobs = list(schedule.jobs.values())
        farthest_s = max((one.job.deadline_s for one in jobs), default=now_s)
        periods = expect(self._grid, datetime.fromtimestamp(farthest_s, UTC)) if jobs else ()
        schedule.take_up(await asyncio.to_thread(schedule.planned, jobs, periods, now_s))
        if schedule.turns:
            self._work.set()

    def _grams_per_kwh(self) -> float | None:
        reading = self._grid.latest()
        return None if reading is None else reading.grams_per_kwh

    def _pause_s(self) -> float:
        """Real seconds until a plan may look different by itself."""
        made = self._schedule.plan
        changes_s = None if made is None else made.changes_s()
        if self._schedule.turns or self._out:
            return STATE_EVERY_S
        if changes_s is None:
            return LOOK_EVERY_S
        now_s = self._now_s()
        next_s = min(changes_s, (now_s // HOUR_S + 1) * HOUR_S)
        return min(LOOK_EVERY_S, max(0.0, (next_s - now_s) / self._speed))

    async def _tidy(self) -> None:
        """Lost leases, old jobs, what was learned."""
        for lease_id in [lease_id for lease_id, out in self._out.items() if out.expires_s < self._clock()]:
            log.warning("lease_lost", job=self._out[lease_id].job_id, after_s=LEASE_TIMEOUT_S)
            await self.give_back(lease_id)
        await self._call(self._store.forget, self._now_s() - self._limits.keep_days * DAY_S)
        await self._call(self._store.remember, PACE, self._schedule.pace_s / self._speed)

    async def _record(self) -> None:
        """Tell the node process, for `/metrics`."""
        running = len(self._running)
        state = {"waiting": len(self._schedule.jobs) - running, "running": running, **self._totals}
        if state == self._recorded:
            return
        self._recorded = state
        try:
            await asyncio.to_thread(write_atomic, self._state_file, json.dumps(state).encode() + b"\n")
        except OSError as error:
            log.warning("jobs_state_not_written", path=str(self._state_file), error=str(error))

    async def close(self) -> None:
        """Write what was learned and close the file; open jobs are taken up again by the next run."""
        self._closed = True
        self._work.set()
        with suppress(NotReady):  # on a full disk: it will be learned again
            await self._call(self._store.remember, PACE, self._schedule.pace_s / self._speed)
        await self._record()
        await self._call(self._store.close)
        self._thread.shutdown()

    async def _get(self, owner: str, job_id: str) -> Job:
        job = await self._call(self._store.get, job_id)
        if job.owner != owner:
            raise UnknownJob(f"job: there is no '{job_id[:40]}'; list yours with GET /jobs")
        return job

    @property
    def _running(self) -> set[str]:
        """Open jobs of which texts are being computed."""
        return {out.job_id for out in self._out.values() if out.job_id in self._schedule.jobs}

    def _describe(self, job: Job, running: Collection[str] | None = None) -> dict[str, Any]:
        runs = job.id in (self._running if running is None else running)
        return job.to_dict(running=runs, planned_s=self._schedule.planned_s(job.id), now_s=self._now_s())

    def _now_s(self) -> float:
        return self._grid.now().timestamp()

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run something of the file's in its thread. Raises NotReady once it is closed, and while it cannot be used."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*arguments))
        except RuntimeError:
            raise NotReady("jobs: the server is stopping; ask again in a moment") from None
        except sqlite3.Error as error:
            log.error("jobs_file_failed", error=str(error))
            raise NotReady(f"jobs: their file cannot be used ({error}); look at its disk, and ask again") from None


def open_desk(settings: Settings, grid: Outlook) -> JobDesk | None:
    """The desk; None where jobs are switched off. Raises StartError if their file cannot be used."""
    if not settings.jobs.enabled:
        return None
    state_file = settings.node_dir / STATE_FILE
    speed = settings.grid.replay_speed if settings.grid.provider == "replay" else 1.0
    try:
        return JobDesk(settings.jobs_path, settings.jobs, grid, state_file, speed=speed, pue=settings.energy.pue)
    except JobStoreError as error:
        raise StartError(str(error)) from error
