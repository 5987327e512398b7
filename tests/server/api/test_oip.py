"""Open Inference Protocol v2 over HTTP: its JSON, its binary extension, its routes."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.app import App
from server.api.errors import MalformedRequest, error_row
from server.api.oip import InferRequest, Output, Wanted, from_raw, make_outputs, to_raw
from server.api.oip_json import parse_infer
from server.api.replies import Replies
from server.engine.engine import Answer
from server.engine.errors import EmptyInput, EngineError, InputTooLarge
from server.engine.family import Family
from server.engine.tokenizer import Text
from tests.support.engines import WatchedEngine, running
from tests.support.rpc import Meter

MAX_TEXTS = 8
texts = st.lists(st.text(max_size=20), min_size=1, max_size=MAX_TEXTS)


def body(data: Any = ("my card",), shape: Any = None, **fields: Any) -> dict[str, Any]:
    tensor = {"name": "text", "shape": [len(data)] if shape is None else shape, "datatype": "BYTES", "data": data}
    return {"inputs": [tensor], **fields}


def parse(document: Any, length: bytes | None = None, tail: bytes = b"") -> InferRequest:
    return parse_infer(orjson.dumps(document) + tail, length, MAX_TEXTS)


def answer(logits: list[float]) -> Answer:
    return Answer(np.array(logits, dtype=np.float32), "full", "full", "pin", "miss", 1000)


@given(texts, st.sampled_from(["flat", "column", "nested"]))
def test_texts_come_out_as_they_went_in_whatever_the_shape(data: list[str], form: str) -> None:
    shape = [len(data)] if form == "flat" else [len(data), 1]
    rows: list[Any] = [[one] for one in data] if form == "nested" else data
    assert parse(body(rows, shape)).texts == [Text(one) for one in data]


@given(texts)
def test_pairs_are_read_row_by_row(data: list[str]) -> None:
    flat = [part for one in data for part in (one, one[::-1])]
    assert parse(body(flat, [len(data), 2])).texts == [Text(one, one[::-1]) for one in data]


@given(texts)
def test_binary_texts_are_the_same_as_those_in_json(data: list[str]) -> None:
    raw = b"".join(struct.pack("<I", len(one.encode())) + one.encode() for one in data)
    tensor = {"name": "text", "shape": [len(data)], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    head = orjson.dumps({"inputs": [tensor]})
    assert parse_infer(head + raw, b"%d" % len(head), MAX_TEXTS).texts == parse(body(data)).texts


@given(st.lists(st.text(max_size=20)))
def test_raw_elements_survive_the_way_there_and_back(values: list[str]) -> None:
    assert from_raw(to_raw(Output("labels", "BYTES", [len(values)], values)), len(values) + 1) == values


@given(st.binary(max_size=40))
def test_raw_garbage_is_refused_or_read_to_its_end(raw: bytes) -> None:
    try:
        values = from_raw(raw, 100)
    except MalformedRequest:
        return
    assert to_raw(Output("labels", "BYTES", [len(values)], values)) == raw


def test_parameters_are_read_and_their_defaults_are_those_of_predict() -> None:
    plain = parse(body())
    assert (plain.quality, plain.truncate, plain.raw_scores, plain.outputs) == ("standard", None, False, ())
    set_ = {"quality": "eco", "truncate": True, "truncation_direction": "left", "raw_scores": True}
    full = parse(body(id="x", parameters=set_, outputs=[{"name": "scores", "parameters": {"classification": 2}}]))
    assert (full.id, full.quality, full.truncate, full.raw_scores) == ("x", "eco", "left", True)
    assert full.outputs == (Wanted("scores", 2, False),)


def test_outputs_are_binary_as_the_request_or_the_output_says() -> None:
    everything = parse(body(parameters={"binary_data_output": True}))
    one = parse(
        body(
            parameters={"binary_data_output": True},
            outputs=[{"name": "labels"}, {"name": "scores", "parameters": {"binary_data": False}}],
        )
    )
    assert [wanted.binary for wanted in everything.outputs] == [True, True]
    assert [wanted.binary for wanted in one.outputs] == [True, False]


REFUSED: dict[str, tuple[Any, int, str]] = {
    "no object": ([], 422, "body"),
    "no inputs": ({}, 400, "inputs"),
    "two inputs": ({"inputs": body()["inputs"] * 2}, 422, "inputs"),
    "an unknown field": (body(input=1), 422, "body.input"),
    "an unknown parameter": (body(parameters={"qualty": "eco"}), 422, "parameters.qualty"),
    "an unknown class": (body(parameters={"quality": "best"}), 422, "parameters.quality"),
    "a number for a flag": (body(parameters={"truncate": 1}), 422, "parameters.truncate"),
    "an unknown side": (body(parameters={"truncation_direction": "up"}), 422, "parameters.truncation_direction"),
    "a shape that lies": (body(["a"], [2]), 422, "inputs.text"),
    "a negative shape": (body([], [-1]), 422, "inputs.text"),
    "a cube": (body(["a"], [1, 1, 1]), 422, "inputs.text"),
    "triples": (body(["a"] * 3, [1, 3]), 422, "inputs.text"),
    "no elements": (body([], [0]), 400, "inputs.text"),
    "too many": (body(["a"] * 9), 413, "inputs.text"),
    "far too many": (body(["a"] * 1000, [1]), 413, "inputs.text"),
    "a number for a text": (body([1]), 422, "inputs[0].data"),
    "no data": ({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES"}]}, 422, "inputs[0].data"),
    "a number for an id": (body(id=7), 422, "id"),
    "an unknown output": (body(outputs=[{"name": "x"}]), 422, "outputs"),
    "no classes": (body(outputs=[{"name": "scores", "parameters": {"classification": 0}}]), 422, "outputs[0]"),
    "classes of labels": (body(outputs=[{"name": "labels", "parameters": {"classification": 1}}]), 422, "outputs"),
    "three outputs": (body(outputs=[{"name": "scores"}] * 3), 422, "outputs"),
    "an output twice": (body(outputs=[{"name": "labels"}, {"name": "labels"}]), 422, "outputs"),
    "another type": (
        {"inputs": [{"name": "text", "shape": [1], "datatype": "FP32", "data": ["1"]}]},
        422,
        "inputs.text",
    ),
    "another name": ({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["1"]}]}, 422, "inputs"),
    "binary data that is not there": (
        {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}]},
        422,
        "inputs[0].parameters.binary_data_size",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named_with_its_field(case: str) -> None:
    document, status, field = REFUSED[case]
    with pytest.raises(EngineError) as caught:
        parse(document)
    assert error_row(caught.value).http_status == status
    assert str(caught.value).startswith(field)


@pytest.mark.parametrize("length", [b"x", b"-1", b"99999", b"", b"9" * 50])
def test_a_header_length_that_cannot_be_is_refused(length: bytes) -> None:
    with pytest.raises(MalformedRequest, match="Inference-Header-Content-Length"):
        parse(body(), length)


def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    head = orjson.dumps(body())
    with pytest.raises(MalformedRequest, match="after the last tensor"):
        parse_infer(head + b"xx", b"%d" % len(head), MAX_TEXTS)


def test_many_elements_are_refused_before_they_are_all_read() -> None:
    with pytest.raises(InputTooLarge):
        from_raw(b"\0\0\0\0" * 100, 8)


@given(st.binary(max_size=60), st.none() | st.integers(0, 80).map(lambda n: b"%d" % n))
def test_whatever_the_body_it_is_read_or_refused(raw: bytes, length: bytes | None) -> None:
    try:
        read = parse_infer(raw, length, MAX_TEXTS)
    except (MalformedRequest, EmptyInput, InputTooLarge):
        return
    assert 1 <= len(read.texts) <= MAX_TEXTS


def test_labels_and_scores_stand_in_the_same_order_best_first(family: Family) -> None:
    request = parse(body(parameters={"raw_scores": True}))
    labels, scores = make_outputs(request, [answer([1, 3, 2])], family.manifest)
    assert (labels.values, scores.values) == (["refund", "parcel", "card"], [3, 2, 1])
    assert labels.shape == scores.shape == [1, 3]


@pytest.mark.parametrize(("classes", "count"), [(1, 1), (2, 2), (50, 3)])
def test_classification_gives_the_best_as_score_index_and_label(family: Family, classes: int, count: int) -> None:
    outputs = [{"name": "scores", "parameters": {"classification": classes}}]
    request = parse(body(parameters={"raw_scores": True}, outputs=outputs))
    (only,) = make_outputs(request, [answer([1, 3, 2])], family.manifest)
    assert (only.datatype, only.shape) == ("BYTES", [1, count])
    assert only.values == ["3:1:refund", "2:2:parcel", "1:0:card"][:count]


@asynccontextmanager
async def serving(family: Family) -> AsyncIterator[tuple[httpx.AsyncClient, WatchedEngine]]:
    async with running(family) as (engine, usage):
        app = App(Replies(engine, Meter(), 10_000, usage), lambda: {"pid": 1})
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            yield client, engine


async def test_the_routes_say_what_is_served_and_404_for_what_is_not(family: Family) -> None:
    ours, version = "/v2/models/tiny", f"/v2/models/tiny/versions/{family.version}"
    async with serving(family) as (client, engine):
        found = [await client.get(path) for path in ("/v2", ours, version)]
        ready = [
            (await client.get(path)).status_code
            for path in ("/v2/health/live", "/v2/health/ready", f"{ours}/ready", f"{version}/ready")
        ]
        missing = [
            await client.request(method, path, json=body() if method == "POST" else None)
            for method, path in (
                ("GET", "/v2/models/other"),
                ("GET", "/v2/models/other/ready"),
                ("GET", f"{ours}/versions/9"),
                ("POST", "/v2/models/other/infer"),
                ("POST", f"{ours}/versions/9/infer"),
            )
        ]
        await engine.drain(1)
        draining = [
            (await client.get(path)).status_code for path in ("/v2/health/live", "/v2/health/ready", f"{ours}/ready")
        ]
    assert [reply.status_code for reply in found] == [200, 200, 200]
    assert found[0].json()["name"] == "jouleserve"
    assert found[1].json() == found[2].json()
    assert ready == [200, 200, 200, 200]
    assert [reply.status_code for reply in missing] == [404] * 5
    assert all("error" in reply.json() for reply in missing)
    assert draining == [200, 503, 503]


async def test_an_inference_is_answered_with_its_id_its_version_and_its_cost(family: Family) -> None:
    async with serving(family) as (client, _):
        reply = await client.post("/v2/models/tiny/infer", json=body(id="a-1", parameters={"raw_scores": True}))
        document = reply.json()
    assert reply.headers["content-type"] == "application/json"
    assert (document["id"], document["model_name"], document["model_version"]) == ("a-1", "tiny", family.version)
    assert document["outputs"] == [
        {"name": "labels", "datatype": "BYTES", "shape": [1, 3], "data": ["card", "refund", "parcel"]},
        {"name": "scores", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 0.0, 0.0]},
    ]
    told = document["parameters"]
    assert (told["variant"], told["point"], told["cache"], told["reason"]) == ("full", "full", "miss", "pin")
    assert told["joules"] > 0
    assert told["joules_source"] == "estimated"


async def test_joules_are_absent_where_nothing_measures_them(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "joules_per_cpu_second", None)
    async with serving(family) as (client, _):
        told = (await client.post("/v2/models/tiny/infer", json=body())).json()["parameters"]
    assert not {"joules", "joules_source"} & told.keys()


async def test_binary_outputs_follow_the_json_and_its_length_is_told(family: Family) -> None:
    async with serving(family) as (client, _):
        asked = body(parameters={"binary_data_output": True, "raw_scores": True})
        reply = await client.post("/v2/models/tiny/infer", json=asked)
    length = int(reply.headers["inference-header-content-length"])
    sizes = [one["parameters"]["binary_data_size"] for one in orjson.loads(reply.content[:length])["outputs"]]
    tail = reply.content[length:]
    assert reply.headers["content-type"] == "application/octet-stream"
    assert from_raw(tail[: sizes[0]], 8) == ["card", "refund", "parcel"]
    assert struct.unpack("<3f", tail[sizes[0] :]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 422),
        (b"x" * 10_001, {}, 413),
        (b"{}", {"content-encoding": "gzip"}, 422),
    ],
)
async def test_a_bad_body_has_the_status_of_the_table(
    family: Family, content: bytes, headers: dict[str, str], status: int
) -> None:
    async with serving(family) as (client, _):
        reply = await client.post("/v2/models/tiny/infer", content=content, headers=headers)
    assert reply.status_code == status
    assert reply.json()["error"]
