"""A short job that comes alone runs on the event loop and wakes nobody, as long as that keeps nobody waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from server.engine.batching import Batcher, BatchLimits
from server.engine.family import Family
from server.engine.runs import JobResult
from server.engine.runtime import Float32Array
from server.engine.scheduler import Scheduler
from server.engine.tokenizer import Text, Tokens
from tests.support.engines import until
from tests.support.scheduling import TinyJob, finished, job, scheduling, scores, with_runtime

LONG_NS = 60_000_000_000


async def ran_on_loop(scheduler: Scheduler, one: TinyJob, ran: list[threading.Thread]) -> bool:
    """Submit one job and say whether it ran where it was submitted."""
    ran.clear()
    await finished(scheduler, [one])
    return ran == [threading.current_thread()]


def noting(family: Family, ran: list[threading.Thread]) -> Family:
    """The family with a runtime that notes the threads it runs on."""
    real = family.runtimes["full"]

    def call(batch: Sequence[Tokens]) -> Float32Array:
        ran.append(threading.current_thread())
        return real.run(batch)

    return with_runtime(family, call)


async def test_a_short_job_that_comes_alone_wakes_no_worker_once_its_pace_is_known(family: Family) -> None:
    ran: list[threading.Thread] = []
    noted = noting(family, ran)
    async with scheduling(inline_ns=LONG_NS) as (scheduler, records):
        assert not await ran_on_loop(scheduler, job(noted, "card"), ran)
        await until(lambda: scheduler._idle == scheduler.workers)
        second = job(noted, "card")
        assert await ran_on_loop(scheduler, second, ran)
        assert scores(second) == [1, 0, 0]
        assert [record.rows for record in records] == [1, 1]


async def test_a_lone_short_job_whose_client_has_left_is_given_back_unrun(family: Family) -> None:
    ran: list[threading.Thread] = []
    noted = noting(family, ran)
    async with scheduling(inline_ns=LONG_NS) as (scheduler, records):
        await finished(scheduler, [job(noted, "card")])
        await until(lambda: scheduler._idle == scheduler.workers)
        ran.clear()
        left = job(noted, "lost")
        left.gone = True
        await finished(scheduler, [left])
        assert left.result.dropped
        assert ran == []
        assert len(records) == 1
        await until(lambda: scheduler._idle == scheduler.workers)
        assert await ran_on_loop(scheduler, job(noted, "card"), ran)


async def test_a_job_that_is_not_known_to_be_short_goes_to_a_worker(family: Family) -> None:
    ran: list[threading.Thread] = []
    noted = noting(family, ran)
    async with scheduling(inline_ns=1) as (scheduler, _):
        for _ in range(3):
            assert not await ran_on_loop(scheduler, job(noted, "card"), ran)
            await until(lambda: scheduler._idle == scheduler.workers)


async def test_jobs_that_come_together_go_to_the_workers(family: Family) -> None:
    ran: list[threading.Thread] = []
    noted = noting(family, ran)
    async with scheduling(inline_ns=LONG_NS) as (scheduler, _):
        await finished(scheduler, [job(noted, "card")])
        await until(lambda: scheduler._idle == scheduler.workers)
        ran.clear()
        await finished(scheduler, [job(noted, "card"), job(noted, "lost")])
        assert threading.current_thread() not in ran


async def test_after_a_run_on_the_loop_that_kept_another_waiting_the_next_go_to_the_workers(family: Family) -> None:
    ran: list[threading.Thread] = []
    noted = noting(family, ran)
    async with scheduling(inline_ns=LONG_NS) as (scheduler, _):
        await finished(scheduler, [job(noted, "card")])
        await until(lambda: scheduler._idle == scheduler.workers)
        first, second = job(noted, "card"), job(noted, "lost")
        loop = asyncio.get_running_loop()
        ran.clear()
        scheduler.submit(first)
        # Read by the loop in the turn after the run, as a request that arrives meanwhile is.
        loop.call_soon(loop.call_soon, scheduler.submit, second)
        await until(lambda: bool(first.results and second.results))
        assert ran[0] is threading.current_thread()
        await until(lambda: scheduler._idle == scheduler.workers)
        assert not await ran_on_loop(scheduler, job(noted, "card"), ran)


@dataclass(eq=False)
class TwiceJob(TinyJob):
    """A job that comes back for another variant, as a cascade's does."""

    scheduler: Scheduler | None = None

    def finish(self, result: JobResult) -> None:
        if self.variant == "full":
            assert self.scheduler is not None
            self.variant, self.arrived_ns = "lite", self.enqueued_ns
            self.scheduler.submit(self)
        else:
            super().finish(result)


def twice(family: Family, scheduler: Scheduler, text: str = "card") -> TwiceJob:
    tokens = family.tokenizer.encode(Text(text), truncate=None)
    return TwiceJob(family, tokens, scheduler=scheduler)


async def test_closing_finishes_the_jobs_that_come_back_too(family: Family) -> None:
    scheduler = Scheduler(2, BatchLimits(max_rows=2))
    jobs = [twice(family, scheduler, f"card w{number}") for number in range(30)]
    for one in jobs:
        scheduler.submit(one)
    await scheduler.close()
    assert [scores(one) for one in jobs] == [[0.5, 0, 0]] * 30
    assert scheduler.queued == 0


async def test_the_objective_counts_from_the_first_arrival_of_a_job_that_comes_back(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[int] = []
    add = Batcher.add

    def noted(*args: Any, **kwargs: Any) -> None:
        arrived.append(kwargs["now_ns"])
        add(*args, **kwargs)

    monkeypatch.setattr(Batcher, "add", noted)
    async with scheduling() as (scheduler, _):
        one = twice(family, scheduler)
        await finished(scheduler, [one])
    assert arrived == [one.arrived_ns] * 2
    assert one.enqueued_ns > one.arrived_ns


async def with_both_paces(scheduler: Scheduler, noted: Family) -> None:
    await finished(scheduler, [twice(noted, scheduler)])
    await until(lambda: scheduler._idle == scheduler.workers)


async def test_a_lone_job_that_comes_back_wakes_no_worker_and_keeps_nobody_waiting(family: Family) -> None:
    ran: list[threading.Thread] = []
    noted = noting(family, ran)
    async with scheduling(inline_ns=LONG_NS) as (scheduler, records):
        await with_both_paces(scheduler, noted)
        for _ in range(3):
            ran.clear()
            one = twice(noted, scheduler)
            await finished(scheduler, [one])
            assert ran == one.threads == [threading.current_thread()]
            await until(lambda: scheduler._idle == scheduler.workers)
        assert [record.variant for record in records] == ["full", "lite"] * 4
        assert scheduler._inline.allows()


async def test_when_a_job_comes_back_from_the_loop_into_company_the_next_go_to_the_workers(family: Family) -> None:
    ran: list[threading.Thread] = []
    noted = noting(family, ran)
    async with scheduling(inline_ns=LONG_NS) as (scheduler, _):
        await with_both_paces(scheduler, noted)
        first, second = twice(noted, scheduler), job(noted, "lost", "lite")
        loop = asyncio.get_running_loop()
        ran.clear()
        scheduler.submit(first)
        loop.call_soon(loop.call_soon, scheduler.submit, second)
        await until(lambda: bool(first.results and second.results))
        assert ran[0] is threading.current_thread()
        await until(lambda: scheduler._idle == scheduler.workers)
        assert not await ran_on_loop(scheduler, job(noted, "card"), ran)
        # That nobody came after the second run does not make up for who waited beside the first.
        assert scheduler._inline._next == 4
