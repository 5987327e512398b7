"""A family of one output answers with its number, as it is, over every protocol; all else works as ever."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from models.store import Store
from server.engine.family import Family, load_family
from server.jobs.worker import JobWorker
from tests.server.api.test_oip import body
from tests.support.apps import post, serving
from tests.support.engines import dial, running
from tests.support.jobs import TurnedGrid, desk_of, wanted
from tests.support.listening import NoJoules
from tests.support.rpc import rpc_serving
from tests.support.tiny_family import publish_tiny_family


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load_family(publish_tiny_family(Store(tmp_path_factory.mktemp("store")), regression=True))


def entry(score: float) -> list[dict[str, Any]]:
    return [{"score": score, "label": "score"}]


@pytest.mark.parametrize("raw_scores", [False, True])
async def test_predict_answers_with_the_number_itself(numbers: Family, raw_scores: bool) -> None:
    async with serving(numbers) as (client, _, _):
        one = await post(client, "my refund", raw_scores=raw_scores)
        batch = await post(client, [["parcel card"], ["please"]], raw_scores=raw_scores)
    assert one.json() == entry(-2.0)
    assert batch.json() == [entry(401.0), entry(0.0)]


async def test_the_cache_the_points_and_the_dial_work_as_ever(numbers: Family) -> None:
    async with serving(numbers) as (client, _, engine):
        miss, hit = await post(client, "parcel"), await post(client, "parcel")
        raw_hit = await post(client, "parcel", raw_scores=True)
        eco = await client.post("/predict", json={"inputs": "refund"}, headers={"X-Quality": "eco"})
        engine.reconfigure(engine.limits, dial("lite"))
        turned = await post(client, "card")
        info = (await client.get("/info")).json()
    assert miss.json() == hit.json() == raw_hit.json() == entry(400.0)
    caches = [reply.headers["x-jouleserve-cache"] for reply in (miss, hit, raw_hit)]
    assert caches == ["miss", "hit", "hit"]
    assert (eco.json(), eco.headers["x-jouleserve-point"]) == (entry(-0.5), "nano")
    assert (turned.json(), turned.headers["x-jouleserve-point"]) == (entry(0.5), "lite")
    assert (info["task"], info["model_type"]["classifier"]["id2label"]) == ("text-regression", {"0": "score"})


async def test_a_number_that_is_not_finite_is_an_error(numbers: Family) -> None:
    async with serving(numbers) as (client, _, _):
        reply = await post(client, "poison")
    assert (reply.status_code, reply.json()["error_type"]) == (424, "Backend")


async def test_open_inference_tensors_have_one_column(numbers: Family) -> None:
    best = {"name": "scores", "parameters": {"classification": 3}}
    async with serving(numbers) as (client, _, _):
        reply = await client.post("/v2/models/tiny/infer", json=body(["refund", "my parcel"]))
        classes = await client.post("/v2/models/tiny/infer", json=body(["refund"], outputs=[best]))
        metadata = (await client.get("/v2/models/tiny")).json()
    labels, scores = reply.json()["outputs"]
    assert (labels["shape"], labels["data"]) == ([2, 1], ["score", "score"])
    assert (scores["datatype"], scores["shape"], scores["data"]) == ("FP32", [2, 1], [-2.0, 400.0])
    assert classes.json()["outputs"][0]["data"] == ["-2:0:score"]
    assert [output["shape"] for output in metadata["outputs"]] == [[-1, 1], [-1, 1]]


async def test_both_grpc_services_answer_with_the_number_itself(numbers: Family) -> None:
    async with rpc_serving(numbers) as rpc:
        reply = await rpc.predict("refund", "my parcel")
        raw = await rpc.predict("refund", raw_scores=True)
        infer = await rpc.infer("refund", "my parcel")
    assert [(list(one.labels), list(one.scores)) for one in reply.predictions] == [
        (["score"], [-2.0]),
        (["score"], [400.0]),
    ]
    assert list(raw.predictions[0].scores) == [-2.0]
    assert [list(output.shape) for output in infer.outputs] == [[2, 1], [2, 1]]
    assert list(infer.outputs[1].contents.fp32_contents) == [-2.0, 400.0]


@pytest.mark.parametrize("raw_scores", [False, True])
async def test_a_job_answers_with_the_number_itself(numbers: Family, tmp_path: Path, raw_scores: bool) -> None:
    grid = TurnedGrid([100.0] * 8)
    async with running(numbers) as (engine, _), desk_of(tmp_path, grid) as desk:
        working = asyncio.create_task(JobWorker([desk], engine, NoJoules()).run())
        job, _ = await desk.submit(wanted(["my refund", "parcel card"], 1, grid, raw_scores=raw_scores))
        async with asyncio.timeout(20):
            while (await desk.show("", job["id"]))["state"] != "done":  # noqa: ASYNC110 (it is computed beside this)
                await asyncio.sleep(0.02)
        working.cancel()
        results = [json.loads(row) for row in await desk.results("", job["id"], 0, 10)]
    assert [result["predictions"] for result in results] == [entry(-2.0), entry(401.0)]
