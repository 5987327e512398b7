"""Every job comes back exactly once, with its own answer, its own error and its own share of the cost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.batching import BatchLimits
from server.engine.errors import BackendFailure
from server.engine.family import Family
from server.engine.runs import JobResult, split
from server.engine.runtime import Float32Array
from server.engine.scheduler import Scheduler
from server.engine.tokenizer import Tokens
from tests.support.engines import WAIT_S, GatedRuntime, until
from tests.support.scheduling import TinyJob, finished, job, scheduling, scores, with_runtime
from tests.support.tiny_family import WORDS


async def test_each_job_gets_the_logits_of_its_own_text(family: Family) -> None:
    jobs = [job(family, text) for text in ("card", "refund refund", "my parcel", "card card card")]
    async with scheduling() as (scheduler, _):
        await finished(scheduler, jobs)
    assert [scores(one) for one in jobs] == [[1, 0, 0], [0, 2, 0], [0, 0, 1], [3, 0, 0]]


async def test_a_poisonous_text_fails_alone_in_its_batch(family: Family) -> None:
    jobs = [job(family, f"card {word}") for word in ("w1", "poison", "w2", "w3")]
    async with scheduling() as (scheduler, records):
        await finished(scheduler, jobs)
    assert [one.result.error is not None for one in jobs] == [False, True, False, False]
    assert [record.rows for record in records] == [4]


@pytest.mark.parametrize("failure", [BackendFailure("no"), RuntimeError("no"), MemoryError()])
async def test_when_a_whole_run_fails_each_text_is_tried_alone(family: Family, failure: Exception) -> None:
    poison = WORDS.index("poison")

    def run(batch: Sequence[Tokens]) -> Float32Array:
        if any(poison in tokens.ids for tokens in batch):
            raise failure
        return family.runtimes["full"].run(batch)

    broken = with_runtime(family, run)
    jobs = [job(broken, text) for text in ("card", "poison card", "refund")]
    async with scheduling() as (scheduler, _):
        await finished(scheduler, jobs)
        again = job(broken, "parcel")
        await finished(scheduler, [again])
    assert [one.result.error is not None for one in jobs] == [False, True, False]
    assert again.result.logits is not None


async def test_a_runtime_that_answers_with_too_few_rows_is_not_believed(family: Family) -> None:
    broken = with_runtime(family, lambda batch: np.zeros((len(batch) - 1, 3), dtype=np.float32))
    jobs = [job(broken, "card"), job(broken, "refund")]
    async with scheduling() as (scheduler, _):
        await finished(scheduler, jobs)
    assert all(one.result.error is not None for one in jobs)


async def test_an_abandoned_job_is_dropped_and_never_run(family: Family) -> None:
    gate = GatedRuntime(family.runtimes["full"])
    held = replace(family, runtimes={"full": gate})
    first, left, stayed = job(held, "card"), job(held, "refund"), job(held, "parcel")
    gate.gate.clear()
    async with scheduling() as (scheduler, _):
        scheduler.submit(first)
        await until(lambda: bool(gate.batches))
        scheduler.submit(left)
        scheduler.submit(stayed)
        left.gone = True
        gate.gate.set()
        await until(lambda: bool(left.results and stayed.results))
    assert left.result.dropped
    assert left.result.cpu_ns == 0
    assert gate.rows == [first.tokens.ids, stayed.tokens.ids]


async def test_a_client_that_leaves_while_jobs_are_counted_is_asked_only_once(family: Family) -> None:
    """Were it asked twice and said yes once, its job would be lost or run although it was dropped."""
    answers = iter([True, False, False])

    class Wavering(TinyJob):
        def abandoned(self) -> bool:
            return next(answers)

    wavering = Wavering(family, Tokens([2]))
    async with scheduling() as (scheduler, _):
        await finished(scheduler, [wavering])
        await finished(scheduler, [job(family, "card")])
        assert scheduler.queued == 0
    assert wavering.result.dropped


async def test_a_job_that_cannot_take_its_result_costs_its_batch_mates_nothing(family: Family) -> None:
    class Clumsy(TinyJob):
        def finish(self, result: JobResult) -> None:
            raise ZeroDivisionError

    mate = job(family, "card")
    async with scheduling() as (scheduler, records):
        scheduler.submit(Clumsy(family, Tokens([2])))
        await finished(scheduler, [mate])
    assert records[0].rows == 2
    assert mate.result.logits is not None


async def test_exactly_one_of_thirty_two_fails_by_a_poisonous_text(family: Family) -> None:
    jobs = [job(family, "poison card" if number == 17 else f"card w{number}") for number in range(32)]
    async with scheduling(max_rows=32) as (scheduler, records):
        await finished(scheduler, jobs)
    assert [number for number, one in enumerate(jobs) if one.result.error is not None] == [17]
    assert [record.rows for record in records] == [32]


async def test_a_job_whose_deadline_has_passed_is_given_back_late_and_never_run(family: Family) -> None:
    gate = GatedRuntime(family.runtimes["full"])
    held = replace(family, runtimes={"full": gate})
    first, late, stayed = job(held, "card"), job(held, "refund"), job(held, "parcel")
    gate.gate.clear()
    async with scheduling() as (scheduler, _):
        scheduler.submit(first)
        await until(lambda: bool(gate.batches))
        late.deadline_ns = time.perf_counter_ns()
        scheduler.submit(late)
        scheduler.submit(stayed)
        gate.gate.set()
        await until(lambda: bool(late.results and stayed.results))
    assert late.result.late
    assert late.result.dropped
    assert gate.rows == [first.tokens.ids, stayed.tokens.ids]


async def test_workers_come_and_go_while_jobs_run_and_none_is_lost(family: Family) -> None:
    jobs = [job(family, f"card w{number}") for number in range(300)]
    async with scheduling(workers=2, max_rows=2) as (scheduler, _):
        for number, one in enumerate(jobs):
            scheduler.submit(one)
            if number % 25 == 0:
                await asyncio.sleep(0)
                scheduler.resize(1 + number // 25 % 4)
        await until(lambda: all(one.results for one in jobs))
        scheduler.resize(3)
        assert scheduler.healthy
        assert scheduler.workers == 3
    assert all(one.result.logits is not None for one in jobs)


async def test_fewer_workers_run_fewer_batches_at_once(family: Family) -> None:
    running, most = [0], [0]
    lock = threading.Lock()

    def run(batch: Sequence[Tokens]) -> Float32Array:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.002)
        with lock:
            running[0] -= 1
        return family.runtimes["full"].run(batch)

    counting = with_runtime(family, run)
    async with scheduling(workers=4, max_rows=1) as (scheduler, _):
        scheduler.resize(1)
        await finished(scheduler, [job(counting, "card") for _ in range(20)])
    assert most[0] == 1


async def test_the_prediction_grows_with_what_waits(family: Family) -> None:
    gate = GatedRuntime(family.runtimes["full"])
    held = replace(family, runtimes={"full": gate})
    async with scheduling() as (scheduler, _):
        await finished(scheduler, [job(held, "card")])
        gate.gate.clear()
        scheduler.submit(job(held, "card"))
        await until(lambda: len(gate.batches) == 2)
        idle_ns = scheduler.predicted_ns
        for _ in range(10):
            scheduler.submit(job(held, "refund " * 20))
        before_flush_ns = scheduler.predicted_ns
        await asyncio.sleep(0)
        assert scheduler.predicted_ns > idle_ns
        assert before_flush_ns > idle_ns
        gate.gate.set()


async def test_results_come_back_on_the_thread_of_the_event_loop(family: Family) -> None:
    one = job(family, "card")
    async with scheduling() as (scheduler, _):
        await finished(scheduler, [one])
    assert one.threads == [threading.current_thread()]


async def test_as_many_batches_run_at_once_as_there_are_workers(family: Family) -> None:
    together = threading.Barrier(3)

    def run(batch: Sequence[Tokens]) -> Float32Array:
        together.wait(WAIT_S)  # passes only if three threads stand here at the same time
        return family.runtimes["full"].run(batch)

    meeting = with_runtime(family, run)
    jobs = [job(meeting, "card " * number) for number in (1, 2, 3)]
    async with scheduling(workers=3, max_rows=1) as (scheduler, _):
        await finished(scheduler, jobs)
    assert all(one.result.logits is not None for one in jobs)


async def test_versions_and_variants_never_share_a_batch(family: Family, tenfold: Family) -> None:
    gate = GatedRuntime(family.runtimes["full"])
    first = job(replace(family, runtimes={"full": gate}), "card")
    jobs = [job(version, "card", variant) for version in (family, tenfold) for variant in ("full", "lite")]
    gate.gate.clear()
    async with scheduling() as (scheduler, records):
        scheduler.submit(first)
        await until(lambda: bool(gate.batches))
        for one in jobs:
            scheduler.submit(one)
        gate.gate.set()
        await until(lambda: all(one.results for one in jobs))
    assert [scores(one)[0] for one in jobs] == [1.0, 0.5, 10.0, 5.0]
    assert [record.rows for record in records] == [1, 1, 1, 1, 1]


async def test_the_shares_of_a_batch_add_up_to_what_it_cost(family: Family) -> None:
    jobs = [job(family, "w1 " * length) for length in (3, 4, 5, 6, 7, 8)]
    async with scheduling() as (scheduler, records):
        await finished(scheduler, jobs)
    assert sum(one.result.cpu_ns for one in jobs) == sum(record.cpu_ns for record in records) > 0
    assert sum(record.tokens for record in records) == sum(len(one.tokens) for one in jobs)
    assert sum(record.rows for record in records) == len(jobs)


async def test_closing_finishes_what_is_queued_and_ends_the_workers(family: Family) -> None:
    jobs = [job(family, f"card w{number}") for number in range(40)]
    before = set(threading.enumerate())
    scheduler = Scheduler(2, BatchLimits(max_rows=2))
    for one in jobs:
        scheduler.submit(one)
    workers = set(threading.enumerate()) - before
    await scheduler.close()
    await until(lambda: all(one.results for one in jobs))
    assert len(workers) == 2
    assert not any(worker.is_alive() for worker in workers)


async def test_jobs_of_one_turn_of_the_loop_share_a_batch(family: Family) -> None:
    jobs = [job(family, "card") for _ in range(16)]
    async with scheduling() as (scheduler, records):
        await asyncio.sleep(0)
        await finished(scheduler, jobs)
    assert [record.rows for record in records] == [16]


@given(
    st.integers(0, 10**12),
    st.lists(st.floats(1e-3, 1e12, allow_nan=False), min_size=1, max_size=64),
)
def test_the_parts_of_a_split_add_up_and_follow_the_weights(total: int, weights: list[float]) -> None:
    parts = split(total, weights)
    assert sum(parts) == total
    assert all(part >= 0 for part in parts)
    whole = sum(weights)
    slack = 1 + total * 1e-12
    assert all(abs(part - total * weight / whole) <= slack for part, weight in zip(parts, weights, strict=True))
