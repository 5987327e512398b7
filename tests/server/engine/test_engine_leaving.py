"""What nobody waits for any more is not computed, and who still waits gets an answer."""

from __future__ import annotations

import asyncio
import threading

import pytest

from server.engine.engine import Answer
from server.engine.errors import (
    ClientGone,
)
from server.engine.family import Family
from server.engine.tokenizer import Text
from tests.support.engines import ask_one, gated, running, until


async def test_the_job_of_a_cancelled_request_is_not_run(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, usage):
        first = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        left = asyncio.create_task(ask_one(engine, "refund"))
        await until(lambda: engine.queued == 1)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        gates["full"].gate.set()
        await first
        await until(lambda: len(usage.requests) == 2)
        assert engine.queued == 0
    assert len(gates["full"].rows) == 1
    assert usage.outcomes == {"ok": 1, "cancelled": 1}


async def test_the_job_of_a_client_that_left_is_not_run(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, usage):
        first = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        left = asyncio.create_task(engine.predict([Text("refund")], is_gone=lambda: True))
        await until(lambda: engine.queued == 1)
        gates["full"].gate.set()
        await first
        with pytest.raises(ClientGone):
            await left
    assert len(gates["full"].rows) == 1
    assert usage.outcomes == {"ok": 1, "cancelled": 1}


async def test_who_joins_a_computation_just_as_it_is_dropped_still_gets_an_answer(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    loop, joined = asyncio.get_running_loop(), threading.Event()
    joiners: list[asyncio.Task[Answer]] = []

    def join() -> None:
        joiners.append(asyncio.create_task(ask_one(engine, "refund")))
        loop.call_soon(joined.set)

    def join_meanwhile() -> bool:
        """Asked by the worker after it has given the first job up, and before it hands that over."""
        if not joiners:
            loop.call_soon_threadsafe(join)
            assert joined.wait(20)
        return True

    async with running(held) as (engine, usage):
        first = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        gone = [
            asyncio.create_task(engine.predict([Text("refund")], is_gone=lambda: True)),
            asyncio.create_task(engine.predict([Text("a longer text")], is_gone=join_meanwhile)),
        ]
        await until(lambda: engine.queued == 2)
        gates["full"].gate.set()
        await first
        await until(lambda: bool(joiners))
        answer = await joiners[0]
        await asyncio.gather(*gone, return_exceptions=True)
    assert answer.logits.tolist() == [0.0, 1.0, 0.0]
    assert len(usage.requests) == 4


async def test_the_first_who_still_waits_owes_the_computation(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, usage):
        first = asyncio.create_task(ask_one(engine, "card"))
        second = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        first.cancel()
        gates["full"].gate.set()
        answer = await second
    assert answer.cache == "miss"
    assert answer.cpu_ns >= engine.batch_cpu_ns
    cancelled, answered = usage.requests
    assert (cancelled["outcome"], answered["outcome"]) == ("cancelled", "ok")
    assert cancelled["cpu_ns"] == cancelled["tokenize_ns"]
