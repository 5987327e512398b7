"""Jobs in a replica: real answers at full quality, in the room that clients leave, over the socket or without it."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from models.store import Store
from server.engine.engine import Answer, Engine
from server.engine.errors import InvalidInput, NotReady, Overloaded
from server.engine.family import Family, load_family
from server.engine.tokenizer import Text
from server.jobs import worker
from server.jobs.desk import JobDesk
from server.jobs.errors import UnknownJob
from server.jobs.link import JobsLink, JobsListener
from server.jobs.port import JobsPort
from server.jobs.worker import JobWorker
from tests.support.engines import gated, running, until
from tests.support.jobs import TurnedGrid, desk_of, wanted
from tests.support.tiny_family import publish_tiny_family

FLAT = [100.0] * 8


class Rate:
    joules_per_cpu_second: float | None = 10.0


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load_family(publish_tiny_family(Store(tmp_path_factory.mktemp("store"))))


@asynccontextmanager
async def working(engine: Engine, *ports: JobsPort, share: float = 0.02) -> AsyncIterator[None]:
    task = asyncio.create_task(JobWorker(ports, engine, Rate(), share).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ended(desk: JobDesk, job_id: str) -> dict[str, Any]:
    """The job when it is done."""
    async with asyncio.timeout(20):
        while (job := await desk.show("", job_id))["state"] != "done":  # noqa: ASYNC110 (it is computed beside this)
            await asyncio.sleep(0.02)
    return job


async def test_texts_are_answered_at_full_quality_and_one_that_fails_costs_the_others_nothing(
    family: Family, tmp_path: Path
) -> None:
    grid = TurnedGrid(FLAT)
    async with running(family, standard="nano", workers=2) as (engine, usage), desk_of(tmp_path, grid) as desk:
        async with working(engine, desk, desk):
            texts = ["my card", "poison", "where is my parcel", "w1 " * 100]
            job, _ = await desk.submit(wanted(texts, 1, grid, raw_scores=True))
            done = await ended(desk, job["id"])
        results = [json.loads(row) for row in await desk.results("", job["id"], 0, 10)]
    assert (done["texts_done"], done["texts_failed"], done["texts_metered"]) == (4, 2, 4)
    assert results[0]["predictions"][0] == {"score": 1.0, "label": "card"}
    assert results[0]["version"] == family.version
    assert results[1]["error_type"] == "Backend"
    assert results[2]["predictions"][0]["label"] == "parcel"
    assert results[3]["error_type"] == "Validation"
    assert {one["quality"] for one in usage.requests} == {"strict"}


async def test_a_job_waits_while_clients_keep_the_engine_busy_and_an_urgent_one_does_not(
    family: Family, tmp_path: Path
) -> None:
    grid = TurnedGrid(FLAT)
    slow, gates = gated(family)
    async with (
        running(slow, workers=2) as (engine, _),
        desk_of(tmp_path, grid, margin_s=900) as desk,
        working(engine, desk, desk),
    ):
        gates["full"].gate.clear()
        client = asyncio.create_task(engine.predict([Text("my card")]))
        await until(lambda: len(gates["full"].batches) == 1)
        patient, _ = await desk.submit(wanted(["refund"], 7, grid))
        await asyncio.sleep(0.8)
        assert gates["full"].batches == [1]
        urgent, _ = await desk.submit(wanted(["parcel"], 0.1, grid))
        await until(lambda: len(gates["full"].batches) == 2)
        gates["full"].gate.set()
        await client
        for job in (patient, urgent):
            assert (await ended(desk, job["id"]))["texts_failed"] == 0


async def test_a_text_that_fails_in_a_way_nobody_thought_of_is_told_and_not_leased_for_ever(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = TurnedGrid(FLAT)
    async with running(family, workers=2) as (engine, _), desk_of(tmp_path, grid) as desk:
        ask = engine.predict

        async def failing(texts: Sequence[Text], **more: Any) -> list[Answer]:
            if any(text.first == "odd" for text in texts):
                raise TypeError("nobody thought of it")
            return await ask(texts, **more)

        monkeypatch.setattr(engine, "predict", failing)
        async with working(engine, desk):
            job, _ = await desk.submit(wanted(["my card", "odd", "refund"], 1, grid))
            assert (await ended(desk, job["id"]))["texts_failed"] == 1
        results = [json.loads(row) for row in await desk.results("", job["id"], 0, 10)]
    assert results[1] == {"error": "the text could not be computed; the server's log says why", "error_type": "Backend"}


async def ask_again_and_again(engine: Engine) -> None:
    for number in itertools.count():
        await engine.predict([Text(f"my card w{number % 90}")])
        await asyncio.sleep(0.01)


async def test_beside_clients_results_come_in_text_by_text_and_a_cancelled_job_is_computed_no_more(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "GIVE_AFTER_S", 0.05)
    grid = TurnedGrid(FLAT)
    async with running(family, workers=2) as (engine, usage), desk_of(tmp_path, grid) as desk:
        clients = asyncio.create_task(ask_again_and_again(engine))
        async with working(engine, desk, share=0.002), asyncio.timeout(20):
            job, _ = await desk.submit(wanted(16, 7, grid))
            while not (await desk.show("", job["id"]))["texts_done"]:  # noqa: ASYNC110 (it is computed beside this)
                await asyncio.sleep(0.01)
            cancelled = await desk.cancel("", job["id"])
            assert cancelled["texts_done"] < 16
            computed = sum(one["quality"] == "strict" for one in usage.requests)
            await asyncio.sleep(1.0)
            assert sum(one["quality"] == "strict" for one in usage.requests) <= computed + 2
        clients.cancel()
        await asyncio.gather(clients, return_exceptions=True)


async def test_a_worker_that_ends_gives_back_what_it_was_computing(family: Family, tmp_path: Path) -> None:
    grid = TurnedGrid(FLAT)
    slow, gates = gated(family)
    async with running(slow, workers=2) as (engine, _), desk_of(tmp_path, grid) as desk:
        async with working(engine, desk):
            gates["full"].gate.clear()
            job, _ = await desk.submit(wanted(["refund"], 7, grid))
            await until(lambda: len(gates["full"].batches) == 1)
        gates["full"].gate.set()
        assert (await desk.show("", job["id"]))["state"] == "waiting"
        async with working(engine, desk):
            await ended(desk, job["id"])


@asynccontextmanager
async def linked(desk: JobDesk) -> AsyncIterator[Path]:
    """A run folder whose socket leads to the desk."""
    with tempfile.TemporaryDirectory(prefix="jl-") as name:
        listener = JobsListener(Path(name), desk)
        await listener.start()
        try:
            yield Path(name)
        finally:
            await listener.close()


async def test_over_the_socket_everything_is_as_without_it(family: Family, tmp_path: Path) -> None:
    grid = TurnedGrid(FLAT)
    async with running(family, workers=2) as (engine, _), desk_of(tmp_path, grid) as desk, linked(desk) as run_dir:
        client, one, two = (JobsLink(run_dir) for _ in range(3))
        async with working(engine, one, two):
            asked = wanted(["my card"] * 20, 1, grid, idempotency_key="k", digest=b"1")
            job, new = await client.submit(asked)
            assert new
            assert await client.submit(asked) == (await client.show("", job["id"]), False)
            with pytest.raises(InvalidInput, match="Idempotency-Key"):
                await client.submit(asked_again(asked))
            with pytest.raises(UnknownJob):
                await client.cancel("", "nothing")
            await ended(desk, job["id"])
            assert len(await client.results("", job["id"], 5, 10)) == 10
            assert [found["id"] for found in await client.listed("", None, None, 10)] == [job["id"]]
            assert await client.now_s() == grid.now().timestamp()
        for link in (client, one, two):
            await link.close()


def asked_again(asked: Any) -> Any:
    from dataclasses import replace

    return replace(asked, digest=b"2")


async def test_overload_keeps_its_time_over_the_socket(tmp_path: Path) -> None:
    grid = TurnedGrid(FLAT)
    async with desk_of(tmp_path, grid, runs=False, max_open_jobs=1) as desk, linked(desk) as run_dir:
        link = JobsLink(run_dir)
        await link.submit(wanted(1, 1, grid))
        with pytest.raises(Overloaded) as refused:
            await link.submit(wanted(1, 1, grid))
        assert refused.value.retry_after_s == 60
        await link.close()


async def test_what_a_replica_that_dies_was_computing_is_given_to_another(tmp_path: Path) -> None:
    grid = TurnedGrid(FLAT)
    async with desk_of(tmp_path, grid) as desk, linked(desk) as run_dir:
        await desk.submit(wanted(3, 5, grid))
        dying, other = JobsLink(run_dir), JobsLink(run_dir)
        lease = await dying.take(5)
        assert lease is not None
        await dying.close()
        again = await other.take(10)
        assert again is not None
        assert again.texts == lease.texts
        await other.close()


async def test_without_an_owner_a_replica_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="owner"):
        await JobsLink(tmp_path).show("", "x")
