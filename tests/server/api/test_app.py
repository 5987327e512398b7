"""The ASGI app: statuses, headers and bodies as the OpenAPI document says, whatever is sent."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.admin import AdminClosed
from server.api.app import App
from server.api.errors import ERRORS, JOB_ERRORS, SlowRequest, UnknownModel
from server.api.http import watcher
from server.api.openapi import OPEN_PATHS
from server.api.replies import Replies
from server.engine.engine import never_gone
from server.engine.family import Family
from server.guard import Guard, RateLimit, RateLimited, Unauthenticated
from tests.support.engines import GatedRuntime, WatchedEngine, dial, gated, running, until

MAX_BODY = 10_000


class Meter:
    """What a node process would say."""

    joules_per_cpu_second: float | None = 12.5
    loaded_ratio: float | None = 4.0
    sources: tuple[str, ...] = ("estimated",)


@asynccontextmanager
async def serving(
    family: Family, guard: Guard | None = None, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, App, WatchedEngine]]:
    async with running(family, **options) as (engine, usage):
        app = App(Replies(engine, Meter(), MAX_BODY, usage, guard), lambda: {"pid": 1})
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client, app, engine


async def post(client: httpx.AsyncClient, inputs: Any = "card", **fields: Any) -> httpx.Response:
    return await client.post("/predict", json={"inputs": inputs, **fields})


async def test_a_text_is_classified(family: Family) -> None:
    async with serving(family) as (client, _, _):
        reply = await post(client, "my card", raw_scores=True)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()[0] == {"score": 1.0, "label": "card"}


async def test_a_batch_is_classified_in_order(family: Family) -> None:
    async with serving(family) as (client, _, _):
        reply = await post(client, [["parcel"], ["card"], ["refund"]])
    assert [result[0]["label"] for result in reply.json()] == ["parcel", "card", "refund"]


async def test_the_reply_says_who_answered_why_and_at_what_cost(family: Family) -> None:
    async with serving(family, standard="lite") as (client, _, _):
        miss, hit = await post(client), await post(client)
        eco = await client.post("/predict", json={"inputs": "refund"}, headers={"X-Quality": "eco"})
    said = {name.removeprefix("x-jouleserve-"): value for name, value in miss.headers.items()}
    assert (said["variant"], said["point"], said["cache"], said["reason"]) == ("lite", "lite", "miss", "pin")
    assert said["version"] == family.version
    assert float(said["joules"]) > 0
    assert said["joules-source"] == "estimated"
    assert hit.headers["x-jouleserve-cache"] == "hit"
    assert (eco.headers["x-jouleserve-point"], eco.headers["x-jouleserve-reason"]) == ("nano", "eco")
    assert float(said["saved-joules"]) > 0
    assert "x-jouleserve-saved-joules" in hit.headers


async def test_the_reply_names_the_version_that_answered_even_when_it_is_swapped(
    family: Family, tenfold: Family
) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with serving(held, workers=2) as (client, _, engine):
        old = asyncio.create_task(post(client, raw_scores=True))
        await until(lambda: bool(gates["full"].batches))
        engine.reconfigure(engine.limits, dial(), tenfold)
        new = await post(client, raw_scores=True)
        gates["full"].gate.set()
        replies = [await old, new]
    assert [reply.json()[0]["score"] for reply in replies] == [1.0, 10.0]
    assert [reply.headers["x-jouleserve-version"] for reply in replies] == [family.version, tenfold.version]


Case = Callable[[httpx.AsyncClient, WatchedEngine, GatedRuntime], Awaitable[httpx.Response]]


async def overloaded(client: httpx.AsyncClient, engine: WatchedEngine, full: GatedRuntime) -> httpx.Response:
    full.gate.clear()
    running = asyncio.create_task(post(client, "w1"))
    await until(lambda: bool(full.batches))
    waiting = asyncio.create_task(post(client, "w2"))
    await until(lambda: engine.queued == 1)
    reply = await post(client, "w3")
    full.gate.set()
    assert [one.status_code for one in await asyncio.gather(running, waiting)] == [200, 200]
    return reply


async def too_late(client: httpx.AsyncClient, engine: WatchedEngine, full: GatedRuntime) -> httpx.Response:
    full.gate.clear()
    reply = await post(client)
    full.gate.set()
    return reply


async def stopping(client: httpx.AsyncClient, engine: WatchedEngine, full: GatedRuntime) -> httpx.Response:
    await engine.drain(1)
    return await post(client)


async def trickling(client: httpx.AsyncClient, engine: WatchedEngine, full: GatedRuntime) -> httpx.Response:
    async def body() -> AsyncIterator[bytes]:
        yield b'{"inputs'
        await asyncio.sleep(60)

    return await client.post("/predict", content=body())


KEY = "open sesame"
KEYED = {"authorization": f"Bearer {KEY}"}


def guard_of(folder: Path, texts_per_s: float = 1.0, burst_texts: int = 1) -> Guard:
    """A guard that knows one key, which may ask for one text."""
    path = folder / "keys"
    path.write_text(f"ali: sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    path.chmod(0o600)
    return Guard(path, RateLimit(texts_per_s, burst_texts), lambda: 1.0)


async def too_many(client: httpx.AsyncClient, engine: WatchedEngine, full: GatedRuntime) -> httpx.Response:
    client.headers.update(KEYED)
    assert (await post(client)).status_code == 200
    return await post(client)


CASES: dict[str, Case] = {
    "Unauthenticated": lambda client, *_: post(client),
    "SlowRequest": trickling,
    "RateLimited": too_many,
    "EmptyInput": lambda client, *_: post(client, " "),
    "BodyTooLarge": lambda client, *_: post(client, "x" * MAX_BODY),
    "InputTooLarge": lambda client, *_: post(client, "w1 " * 65),
    "MalformedRequest": lambda client, *_: post(client, 5),
    "InvalidInput": lambda client, *_: post(client, ["card", "refund"]),
    "BackendFailure": lambda client, *_: post(client, "poison"),
    "Overloaded": overloaded,
    "NotReady": stopping,
    "DeadlineExceeded": too_late,
}


@pytest.mark.parametrize(
    "error", ERRORS.keys() - {UnknownModel, AdminClosed, *JOB_ERRORS}, ids=lambda error: error.__name__
)
async def test_each_error_of_the_table_reaches_the_client_with_its_status_and_type(
    family: Family, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, error_type, _ = ERRORS[error]
    held, gates = gated(family)
    timeout_s = 0.05 if error.__name__ == "DeadlineExceeded" else 20
    monkeypatch.setattr("server.api.app.READ_TIMEOUT_S", 0.05 if error is SlowRequest else 20)
    guard = guard_of(tmp_path) if error in (Unauthenticated, RateLimited) else None
    async with serving(held, guard, max_queue_requests=1, request_timeout_s=timeout_s) as (client, _, engine):
        reply = await CASES[error.__name__](client, engine, gates["full"])
    assert reply.status_code == status
    body = reply.json()
    assert body.keys() == {"error", "error_type"}
    assert body["error_type"] == error_type
    assert ("retry-after" in reply.headers) == (status in (429, 503))
    assert reply.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert int(reply.headers.get("retry-after", 1)) >= 1


async def test_one_poisonous_text_fails_its_request_and_no_other(family: Family) -> None:
    async with serving(family) as (client, _, _):
        replies = await asyncio.gather(*(post(client, text) for text in ("card", "poison", "refund")))
    assert [reply.status_code for reply in replies] == [200, 424, 200]


async def test_predict_is_posted_to(family: Family) -> None:
    async with serving(family) as (client, _, _):
        reply = await client.get("/predict")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


async def test_health_turns_when_the_server_drains(family: Family) -> None:
    async with serving(family) as (client, _, engine):
        before = await client.get("/health")
        await engine.drain(1)
        after = await client.get("/health")
    assert (before.status_code, after.status_code) == (200, 503)
    assert after.json()["error_type"] == "Unhealthy"


async def test_info_says_what_is_served(family: Family) -> None:
    async with serving(family, standard="lite", max_queue_requests=7) as (client, _, _):
        info = (await client.get("/info")).json()
    assert (info["model_id"], info["model_sha"], info["pid"]) == ("tiny", family.version, 1)
    assert info["model_type"]["classifier"]["id2label"] == {"0": "card", "1": "refund", "2": "parcel"}
    assert info["max_concurrent_requests"] == 7
    assert [point["name"] for point in info["points"]] == ["full", "lite", "nano"]
    assert info["dial"]["point_by_class"]["standard"] == "lite"
    # The fields that text-embeddings-inference's clients require.
    required = "max_input_length max_batch_tokens max_client_batch_size auto_truncate tokenization_workers version"
    assert {*required.split(), "model_dtype"} <= info.keys()


async def test_the_docs_page_shows_every_route_and_needs_no_internet(family: Family) -> None:
    async with serving(family) as (client, _, _):
        reply = await client.get("/docs")
    assert reply.headers["content-type"].startswith("text/html")
    assert all(route in reply.text for route in ("POST /predict", "GET /info", "GET /health", "X-Quality", "429"))
    assert not re.search(r"https?://|<script", reply.text)


async def openapi(family: Family) -> dict[str, Any]:
    async with serving(family) as (client, _, _):
        document: dict[str, Any] = (await client.get("/openapi.json")).json()
    return document


async def test_the_document_lists_exactly_the_statuses_of_the_table(family: Family) -> None:
    operation = (await openapi(family))["paths"]["/predict"]["post"]
    told = [
        row.http_status for error, row in ERRORS.items() if error not in (UnknownModel, Unauthenticated, *JOB_ERRORS)
    ]
    assert set(operation["responses"]) == {"200", *map(str, told)}
    assert "security" not in operation


async def test_where_keys_are_asked_for_the_document_says_so_and_can_be_read_without_one(
    family: Family, tmp_path: Path
) -> None:
    async with serving(family, guard_of(tmp_path)) as (client, _, _):
        document = (await client.get("/openapi.json")).json()
        docs, health = await client.get("/docs"), await client.get("/health")
    assert (docs.status_code, health.status_code) == (200, 200)
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("401" in operation["responses"]) == ("security" in operation) == (path not in OPEN_PATHS)


@pytest.mark.parametrize(("method", "path"), [("GET", "/info"), ("GET", "/nowhere"), ("POST", "/v2/x"), ("PUT", "/")])
async def test_every_route_that_is_not_open_asks_for_the_key(
    family: Family, tmp_path: Path, method: str, path: str
) -> None:
    async with serving(family, guard_of(tmp_path)) as (client, _, _):
        without = await client.request(method, path)
        with_key = await client.request(method, path, headers=KEYED)
    assert (without.status_code, without.json()["error_type"]) == (401, "Unauthenticated")
    assert with_key.status_code in (200, 404, 405)


async def test_a_body_over_the_limit_is_refused_on_every_route(family: Family) -> None:
    async with serving(family) as (client, app, _):
        declared = await client.post("/nowhere", content=b"x" * (MAX_BODY + 1))
        sent = await exchange(app, [chunk(b"x" * MAX_BODY, True), chunk(b"x", True)], path="/nowhere")
    assert (declared.status_code, sent[0]["status"]) == (413, 413)


@pytest.mark.parametrize("path", ["/health", "/live", "/docs", "/openapi.json", "/v2/health/ready"])
async def test_a_body_on_an_open_route_is_answered_unread(family: Family, path: str) -> None:
    """Whoever has no key could else send without end."""
    async with serving(family) as (_, app, _):
        sent = await exchange(app, [], path=path)
    assert sent[0]["status"] == 405


async def test_cold_routes_that_could_not_be_built_are_built_when_next_asked_for(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(family) as (client, app, _):
        with monkeypatch.context() as broken:
            broken.setattr(app, "_build", lambda: 1 / 0)
            first = await client.get("/info")
        second = await client.get("/info")
    assert (first.status_code, first.json()["error_type"]) == (500, "Backend")
    assert second.status_code == 200


async def test_an_unexpected_failure_of_a_cold_route_has_the_shape_of_all_errors(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.rest.describe_family", lambda engine: 1 / 0)
    async with serving(family) as (client, _, _):
        reply = await client.get("/info")
    assert (reply.status_code, reply.json()["error_type"]) == (500, "Backend")


async def test_no_client_is_sent_to_where_its_host_header_says(family: Family) -> None:
    async with serving(family) as (client, _, _):
        reply = await client.get("/info/", headers={"host": "elsewhere.example"})
    assert reply.status_code == 404
    assert "location" not in reply.headers


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/info", 405)])
async def test_a_route_that_is_not_there_is_refused_in_the_shape_of_all_errors(
    family: Family, path: str, status: int
) -> None:
    async with serving(family) as (client, _, _):
        reply = await client.post(path, content=b"{}")
    assert reply.status_code == status
    assert reply.json().keys() == {"error", "error_type"}


async def test_the_document_tells_what_inputs_this_family_takes(family: Family) -> None:
    schemas = (await openapi(family))["components"]["schemas"]
    text, one, batch = schemas["PredictBody"]["properties"]["inputs"]["anyOf"]
    assert (text["maxLength"], one["maxItems"], batch["maxItems"]) == (20_000, 1, 64)
    assert schemas["PredictBody"]["additionalProperties"] is False


async def test_the_document_lists_exactly_the_headers_that_are_sent(family: Family) -> None:
    document = await openapi(family)
    async with serving(family) as (client, _, _):
        reply = await post(client)
    described = document["paths"]["/predict"]["post"]["responses"]["200"]["headers"]
    sent = {name for name in reply.headers if name.startswith("x-")}
    # The two that are absent from a computed answer of full quality.
    absent = {"x-jouleserve-escalated", "x-jouleserve-saved-joules"}
    assert {name.lower() for name in described} == sent | absent
    assert not sent & absent


async def test_the_document_refers_to_nothing_that_it_does_not_hold(family: Family) -> None:
    document = await openapi(family)
    referred = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert referred == set(document["components"]["schemas"]) & referred
    assert referred == {"PredictBody", "Prediction", "ErrorBody"}


async def exchange(
    app: App, messages: list[dict[str, Any]], headers: Any = (), path: str = "/predict"
) -> list[dict[str, Any]]:
    """Send raw ASGI messages; what came back."""
    sent: list[dict[str, Any]] = []
    incoming = iter(messages)

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": path, "headers": list(headers)}, receive, send)
    return sent


def chunk(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_may_come_in_pieces(family: Family) -> None:
    async with serving(family) as (_, app, _):
        sent = await exchange(app, [chunk(b'{"inp', True), chunk(b"", True), chunk(b'uts": "card"}')])
    assert sent[0]["status"] == 200


async def test_a_body_that_grows_too_large_is_refused_before_it_is_complete(family: Family) -> None:
    async with serving(family) as (_, app, _):
        sent = await exchange(app, [chunk(b"x" * (MAX_BODY - 1), True), chunk(b"xx", True)])
    assert sent[0]["status"] == 413


async def test_to_a_client_that_leaves_nothing_is_said(family: Family) -> None:
    async with serving(family) as (_, app, engine):
        assert await exchange(app, [chunk(b'{"inputs"', True), {"type": "http.disconnect"}]) == []
        assert engine.active == 0


class Cycle:
    """What uvicorn's `receive` is a method of."""

    disconnected = False

    async def receive(self) -> Any:
        return None


async def test_a_client_that_left_is_noticed_without_waiting_for_it() -> None:
    cycle = Cycle()
    gone = watcher(cycle.receive)
    assert not gone()
    cycle.disconnected = True
    assert gone()


async def test_a_server_that_cannot_tell_counts_every_client_as_there() -> None:
    async def receive() -> Any:
        return None

    assert watcher(receive) is never_gone


awkward = st.text(max_size=30) | st.sampled_from(["\x00", "poison", "card", "[SEP]", "\u202e", "\U0001f600" * 9])
bodies = st.one_of(
    st.binary(max_size=50),
    st.builds(
        lambda inputs, flags: orjson.dumps({"inputs": inputs, **flags}),
        awkward | st.lists(awkward, max_size=3) | st.lists(st.lists(awkward, max_size=3), max_size=4),
        st.fixed_dictionaries(
            {},
            optional={
                "truncate": st.booleans(),
                "raw_scores": st.booleans(),
                "truncation_direction": st.sampled_from(["left", "right", "up"]),
            },
        ),
    ),
)
qualities = st.none() | st.sampled_from([b"strict", b"eco"]) | st.binary(max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(bodies, qualities), max_size=12))
def test_whatever_is_sent_the_answer_is_a_result_or_the_senders_fault(
    family: Family, requests: list[tuple[bytes, bytes | None]]
) -> None:
    async def play() -> None:
        async with serving(family) as (_, app, engine):
            calls = (
                exchange(app, [chunk(body)], [] if quality is None else [(b"x-quality", quality)])
                for body, quality in requests
            )
            for start, body in await asyncio.gather(*calls):
                assert start["status"] == 200 or 400 <= start["status"] < 500
                document = orjson.loads(body["body"])
                assert isinstance(document, list) == (start["status"] == 200)
            assert (engine.active, engine.queued) == (0, 0)

    asyncio.run(play())


async def test_over_a_real_connection_the_text_of_a_client_that_hung_up_is_not_computed(family: Family) -> None:
    held, gates = gated(family)
    full = gates["full"]
    full.gate.clear()
    async with serving(held) as (client, app, engine):
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        listening = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        first = asyncio.create_task(post(client, "w1"))
        await until(lambda: bool(full.batches))
        body = b'{"inputs": "hung up"}'
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await until(lambda: engine.queued == 1)
        writer.close()
        await writer.wait_closed()
        await until(lambda: not server.server_state.connections)
        full.gate.set()
        assert (await first).status_code == 200
        await until(lambda: engine.queued == 0 and engine.active == 0)
        server.should_exit = True
        await listening
    assert len(full.rows) == 1
