"""What cannot be answered in time, or at all, is refused at once, and what was accepted is answered or given up."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from models.manifest import CostModel
from server.engine.batching import BatchLimits
from server.engine.errors import (
    DeadlineExceeded,
    Overloaded,
)
from server.engine.family import Family
from server.engine.tokenizer import Text
from tests.support.engines import ask, ask_one, gated, running, until


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(family: Family) -> None:
    held, gates = gated(family)
    async with running(held, max_queue_requests=2) as (engine, usage):
        cached = await ask_one(engine, "w1 w1")
        gates["full"].gate.clear()
        accepted = [asyncio.create_task(ask_one(engine, "refund"))]
        await until(lambda: len(gates["full"].batches) == 2)
        accepted += [asyncio.create_task(ask_one(engine, text)) for text in ("parcel", "card")]
        await until(lambda: engine.queued == 2)
        with pytest.raises(Overloaded) as refusal:
            await ask_one(engine, "one more")
        joined = asyncio.create_task(ask_one(engine, "card"))
        assert (await ask_one(engine, "w1 w1")).logits.tolist() == cached.logits.tolist()
        gates["full"].gate.set()
        assert [answer.cache for answer in await asyncio.gather(*accepted, joined)] == ["miss"] * 3 + ["shared"]
    assert refusal.value.retry_after_s >= 1
    assert usage.outcomes["shed"] == 1


async def test_a_request_is_admitted_whole_or_not_at_all(family: Family) -> None:
    async with running(family, max_queue_requests=2) as (engine, usage):
        answers = await ask(engine, *(f"card w{number}" for number in range(20)))
    assert len(answers) == 20
    assert usage.outcomes == {"ok": 20}


async def test_what_cannot_be_answered_in_time_is_refused_at_once(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    # By the manifest's cost model a text takes a second of CPU, so those that wait take longer than a request may.
    slow = CostModel(fixed_ns=1e9, linear_ns=0, quadratic_ns=0)
    variants = tuple(variant.model_copy(update={"cost": slow}) for variant in held.manifest.variants)
    held = replace(held, manifest=held.manifest.model_copy(update={"variants": variants}))
    async with running(held, request_timeout_s=15) as (engine, usage):
        waiting = asyncio.create_task(ask(engine, *(f"card w{number % 50} w{number}" for number in range(60))))
        await until(lambda: engine.queued > 40)
        with pytest.raises(Overloaded) as refusal:
            await ask_one(engine, "late")
        gates["full"].gate.set()
        assert len(await waiting) == 60
    assert refusal.value.retry_after_s > 15
    assert usage.outcomes == {"ok": 60, "shed": 1}


async def test_a_request_has_no_more_time_than_it_asked_for(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, usage):
        first = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        with pytest.raises(DeadlineExceeded, match=r"0\.02 s"):
            await engine.predict([Text("refund")], timeout_s=0.02)
        gates["full"].gate.set()
        await first
        await until(lambda: len(usage.requests) == 2)
    assert len(gates["full"].rows) == 1  # it cost no forward pass
    assert usage.outcomes == {"ok": 1, "cancelled": 1}


async def test_who_joins_a_computation_with_more_time_gets_an_answer_though_its_first_deadline_passed(
    family: Family,
) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, usage):
        first = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        short = asyncio.create_task(engine.predict([Text("refund")], timeout_s=0.02))
        await until(lambda: engine.queued == 1)
        patient = asyncio.create_task(ask_one(engine, "refund"))
        with pytest.raises(DeadlineExceeded):
            await short
        gates["full"].gate.set()
        assert (await patient).logits.tolist() == [0.0, 1.0, 0.0]
        await first
    assert usage.outcomes == {"ok": 2, "cancelled": 1}


async def test_with_an_objective_what_would_take_too_long_is_refused_at_once(family: Family) -> None:
    held, gates = gated(family)
    limits = BatchLimits(objective_ns=1_000_000)
    texts = [f"w{number} " + "w1 " * 45 for number in range(60)]
    async with running(held) as (engine, usage):
        await ask_one(engine, "warm")
        gates["full"].gate.clear()
        waiting = asyncio.create_task(ask(engine, *texts))
        await until(lambda: engine.queued > 30)
        engine.reconfigure(replace(engine.limits, batch=limits), engine.dial)
        with pytest.raises(Overloaded) as refusal:
            await ask_one(engine, "late")
        engine.reconfigure(replace(engine.limits, batch=BatchLimits()), engine.dial)
        accepted = asyncio.create_task(ask_one(engine, "in time"))
        gates["full"].gate.set()
        assert len(await waiting) == 60
        await accepted
    assert refusal.value.retry_after_s >= 1
    assert usage.outcomes["shed"] == 1


async def test_a_lone_request_is_never_refused_however_tight_the_objective(family: Family) -> None:
    async with running(family, batch=BatchLimits(objective_ns=1)) as (engine, _):
        for number in range(5):
            assert (await ask_one(engine, f"card w{number}")).cache == "miss"


async def test_a_request_that_takes_too_long_is_given_up_and_reported_once(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held, request_timeout_s=0.05) as (engine, usage):
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await ask_one(engine, "card")
        gates["full"].gate.set()
        await until(lambda: bool(usage.requests))
        assert engine.active == 0
    assert usage.outcomes == {"cancelled": 1}
    assert usage.requests[0]["cpu_ns"] >= engine.batch_cpu_ns
