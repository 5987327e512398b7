"""Every text is reported once, with what it cost and what it saved."""

from __future__ import annotations

import asyncio

from server.engine.engine import Answer
from server.engine.errors import (
    EngineError,
)
from server.engine.family import Family
from server.shaping.policy import CLASSES
from tests.support.engines import POINTS, ask_one, dial, gated, running, until


async def test_every_text_is_reported_once_and_all_cpu_time_is_owed(family: Family) -> None:
    """Sum over texts == CPU of all batches + what the texts cost before them; whatever becomes of a text."""
    held, gates = gated(family)
    texts = ["card", "refund w1", "poison", "parcel w2 w3", "w4 " * 30, "card card", "w9 " * 65, "poison w2"]
    async with running(held, workers=2, max_queue_requests=10, cache_ttl_s=0.01) as (engine, usage):
        begun = 0
        for turn in range(12):
            engine.reconfigure(engine.limits, dial(POINTS[turn % 3]))
            if turn % 2:
                await asyncio.sleep(0.02)  # longer than the cache keeps an answer
                gates["full"].gate.clear()
            tasks = [
                asyncio.create_task(ask_one(engine, f"{text} w{number % 5}", CLASSES[number % 3]))
                for number, text in enumerate(texts * (12 if turn == 5 else 2))
            ]
            await asyncio.sleep(0.003)
            for task in tasks[::5]:
                task.cancel()
            gates["full"].gate.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, Answer | EngineError | asyncio.CancelledError) for one in results)
            begun += len(tasks)
        await until(lambda: len(usage.requests) >= begun)
    assert len(usage.requests) == begun
    assert usage.outcomes.keys() == {"ok", "cached", "error", "cancelled", "shed"}
    # A text that went through the runtime says what it cost before; of another one that is all.
    before = sum(request.get("tokenize_ns") or 0 for request in usage.requests)
    before += sum(request["cpu_ns"] for request in usage.requests if request.get("tokenize_ns") is None)
    assert sum(request["cpu_ns"] for request in usage.requests) == engine.batch_cpu_ns + before
    assert usage.counts["cache_hits"] + usage.counts["cache_misses"] == begun


async def test_nothing_was_avoided_for_who_got_no_answer(family: Family) -> None:
    held, gates = gated(family)
    gates["nano"].gate.clear()
    async with running(held, standard="nano") as (engine, usage):
        leaving = [asyncio.create_task(ask_one(engine, "card")) for _ in range(2)]
        await until(lambda: bool(gates["nano"].batches))
        failing = [asyncio.create_task(ask_one(engine, "poison")) for _ in range(3)]
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        gates["nano"].gate.set()
        await asyncio.gather(*failing, return_exceptions=True)
        await until(lambda: len(usage.requests) == 5)
    assert usage.outcomes == {"cancelled": 2, "error": 3}
    assert engine.batch_cpu_ns > 0
    assert not usage.avoided_ns


async def test_a_cheaper_point_reports_what_full_quality_would_have_cost_more(family: Family) -> None:
    async with running(family, standard="nano") as (engine, usage):
        await ask_one(engine, "card")
        await ask_one(engine, "card", "strict")
    cheap = usage.requests[0]
    # By the manifest `full` takes four times the CPU of `nano`, and strict requests save nothing.
    assert usage.avoided_ns["fallback"] == 3 * (cheap["cpu_ns"] - cheap["tokenize_ns"])


async def test_an_answer_says_what_it_saved_as_it_is_reported(family: Family) -> None:
    async with running(family, standard="nano") as (engine, usage):
        cheap, full = await ask_one(engine, "card"), await ask_one(engine, "refund", "strict")
        hit = await ask_one(engine, "refund", "strict")
    assert cheap.saved_ns == usage.avoided_ns["fallback"] > 0
    assert full.saved_ns == 0
    assert hit.saved_ns == usage.avoided_ns["cache"]


async def test_a_cached_or_shared_answer_of_a_cheaper_point_saved_what_full_quality_would_have_cost(
    family: Family,
) -> None:
    held, gates = gated(family)
    gates["nano"].gate.clear()
    async with running(held, standard="nano") as (engine, _):
        asking = [asyncio.create_task(ask_one(engine, "card")) for _ in range(2)]
        await until(lambda: bool(gates["nano"].batches))
        gates["nano"].gate.set()
        miss, shared = await asyncio.gather(*asking)
        hit = await ask_one(engine, "card")
    ran_ns = miss.cpu_ns - miss.tokenize_ns
    assert (miss.cache, shared.cache, hit.cache) == ("miss", "shared", "hit")
    assert (miss.saved_ns, shared.saved_ns) == (3 * ran_ns, 4 * ran_ns - shared.cpu_ns)
    assert hit.saved_ns == 4 * ran_ns - hit.cpu_ns
