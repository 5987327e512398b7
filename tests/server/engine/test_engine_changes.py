"""The engine drains, closes, and takes other versions, dials and bounds, without losing or mixing an answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from server.engine.engine import EngineLimits
from server.engine.errors import (
    InputTooLarge,
    NotReady,
)
from server.engine.family import Family
from tests.support.engines import WatchedEngine, ask, ask_one, dial, gated, running, until


async def test_draining_answers_everything_that_was_accepted_and_accepts_nothing_more(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, _):
        accepted = [asyncio.create_task(ask_one(engine, f"card w{number}")) for number in range(40)]
        await until(lambda: engine.active == 40)
        draining = asyncio.create_task(engine.drain(20))
        await asyncio.sleep(0)
        assert not engine.ready
        with pytest.raises(NotReady):
            await ask_one(engine, "card")
        gates["full"].gate.set()
        answers = await asyncio.gather(*accepted)
        assert await draining
    assert {tuple(answer.logits.tolist()) for answer in answers} == {(1.0, 0.0, 0.0)}


async def test_a_drain_that_takes_too_long_says_so(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, _):
        accepted = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: engine.active == 1)
        assert not await engine.drain(0.01)
        gates["full"].gate.set()
        await accepted


async def test_draining_an_idle_engine_ends_at_once(family: Family) -> None:
    async with running(family) as (engine, _):
        assert await engine.drain(20)


async def test_closing_still_answers_what_was_accepted(family: Family) -> None:
    held, gates = gated(family)
    async with running(held) as (engine, _):
        gates["full"].gate.clear()
        accepted = [asyncio.create_task(ask_one(engine, f"card w{number}")) for number in range(30)]
        await until(lambda: engine.active == 30)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        gates["full"].gate.set()
        await closing
        assert len(await asyncio.gather(*accepted)) == 30


async def test_no_answer_mixes_two_versions_when_they_are_swapped_under_load(family: Family, tenfold: Family) -> None:
    largest = {family.version: 1.0, tenfold.version: 10.0}
    seen = set()

    async def client(engine: WatchedEngine, name: int) -> None:
        for number in range(25):
            version = engine.family.version
            texts = [f"card w{name}", f"refund w{number} w{name}", "parcel"]
            for answer in await ask(engine, *texts):
                assert answer.logits.max() == largest[version]
            seen.add(version)

    async with running(family, workers=2) as (engine, usage):
        clients = [asyncio.create_task(client(engine, name)) for name in range(8)]
        turn = 0
        while not all(one.done() for one in clients):
            turn += 1
            engine.reconfigure(engine.limits, dial("full"), (family, tenfold)[turn % 2])
            await asyncio.sleep(0.002)
        await asyncio.gather(*clients)
    assert seen == set(largest)
    assert usage.outcomes.keys() == {"ok", "cached"}


async def test_an_answer_of_the_old_version_is_not_kept_for_the_new_one(family: Family, tenfold: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, _):
        old = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        engine.reconfigure(engine.limits, dial(), tenfold)
        gates["full"].gate.set()
        assert (await old).logits[0] == 1.0
        assert len(engine.cache) == 0
        new = await ask_one(engine, "card")
    assert (new.logits[0], new.cache) == (10.0, "miss")


async def test_a_new_version_takes_the_memory_of_the_answers_that_nobody_can_ask_for_any_more(
    family: Family, tenfold: Family
) -> None:
    async with running(family) as (engine, _):
        await ask(engine, "card", "refund")
        engine.reconfigure(engine.limits, dial("lite"))
        assert len(engine.cache) == 2  # turning the dial costs no answer
        engine.reconfigure(engine.limits, dial(), tenfold)
        assert len(engine.cache) == 0


async def test_a_dial_that_names_an_unknown_point_changes_nothing(family: Family, tenfold: Family) -> None:
    async with running(family) as (engine, _):
        before = engine.limits, engine.dial, engine.family
        with pytest.raises(KeyError, match="best"):
            engine.reconfigure(EngineLimits(max_queue_requests=1), dial("best"), tenfold)
        assert (engine.limits, engine.dial, engine.family) == before


async def test_new_bounds_hold_for_the_next_request(family: Family) -> None:
    async with running(family) as (engine, usage):
        await ask(engine, "card", "refund")
        engine.reconfigure(replace(engine.limits, max_texts_per_request=1, cache_max_bytes=0), dial("nano"))
        with pytest.raises(InputTooLarge, match="limit is 1"):
            await ask(engine, "card", "refund")
        assert (await ask_one(engine, "card")).point == "nano"
        assert len(engine.cache) == 0
    assert usage.batches[0][0] == 2
