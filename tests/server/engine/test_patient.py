"""What nobody waits for never holds the event loop up, whichever way it comes to be computed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from server.engine.batching import BatchLimits
from server.engine.engine import Answer
from server.engine.family import Family
from server.engine.latency_guard import LEAST
from server.engine.runtime import Float32Array, Runtime
from server.engine.tokenizer import Text, Tokens
from tests.support.engines import WatchedEngine, running, until
from tests.support.tiny_family import CASCADE

LONG_NS = 1_000_000_000


class NotingRuntime:
    """A real runtime that notes the threads it runs on."""

    def __init__(self, inner: Runtime, ran: list[threading.Thread]) -> None:
        self._inner, self._ran = inner, ran

    def run(self, batch: Sequence[Tokens]) -> Float32Array:
        """Note it and run."""
        self._ran.append(threading.current_thread())
        return self._inner.run(batch)


def noting(family: Family, ran: list[threading.Thread]) -> Family:
    """The family with such runtimes."""
    runtimes = {name: NotingRuntime(runtime, ran) for name, runtime in family.runtimes.items()}
    return replace(family, runtimes=dict(runtimes))


async def ask(engine: WatchedEngine, text: str, *, patient: bool) -> Answer:
    """Ask when nothing else goes on, as a lone request that may be run on the loop has it."""
    await asyncio.sleep(0.01)
    await until(lambda: engine._scheduler._idle == engine.workers)
    (answer,) = await engine.predict([Text(text)], truncate="right", patient=patient)
    return answer


ALONE = BatchLimits(inline_ns=LONG_NS)


@pytest.mark.parametrize("words", ["card w{}", "card w{} " + "w1 " * 3000], ids=["short", "long"])
async def test_a_patient_request_is_run_by_a_worker_however_long_its_text(family: Family, words: str) -> None:
    ran: list[threading.Thread] = []
    async with running(noting(family, ran), batch=ALONE) as (engine, _):
        for number in range(2):  # paces are known then
            await ask(engine, words.format(number), patient=False)
        ran.clear()
        await ask(engine, words.format(2), patient=False)
        assert ran == [threading.current_thread()]
        ran.clear()
        await ask(engine, words.format(3), patient=True)
    assert threading.current_thread() not in ran


async def test_a_patient_request_is_run_by_a_worker_where_it_escalates(cascaded: Family) -> None:
    ran: list[threading.Thread] = []
    async with running(noting(cascaded, ran), standard=CASCADE, batch=ALONE) as (engine, _):
        unsure = ["card " * 4 + f"w{number} " for number in range(4)]
        for text in unsure[:2]:
            assert (await ask(engine, text, patient=False)).variant == "full"
        ran.clear()
        await ask(engine, unsure[2], patient=False)
        assert ran == [threading.current_thread()] * 2
        ran.clear()
        assert (await ask(engine, unsure[3], patient=True)).variant == "full"
    assert len(ran) == 2
    assert threading.current_thread() not in ran


async def test_how_long_answers_take_is_told_and_guarded_by_those_who_waited(family: Family) -> None:
    async with running(family, p99_ns={"standard": 1}) as (engine, usage):
        for patient in (True, False):
            assert not engine._latency.engaged("standard", time.perf_counter_ns())
            for number in range(LEAST + 1):
                await engine.predict([Text(f"card w{number} {patient}")], patient=patient)
        assert engine._latency.engaged("standard", time.perf_counter_ns())
        await engine.predict([Text("card w0 True")], patient=True)
    told = [one.get("total_ns") is not None for one in usage.requests]
    assert told == [False] * (LEAST + 1) + [True] * (LEAST + 1) + [False]
    assert usage.requests[-1]["outcome"] == "cached"
