"""The ASGI app: statuses, headers and bodies as the OpenAPI document says, whatever is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.admin import AdminClosed
from server.api.errors import ERRORS, JOB_ERRORS, SlowRequest, UnknownModel
from server.engine.family import Family
from server.guard import RateLimited, Unauthenticated
from tests.support.apps import KEYED, MAX_BODY, chunk, exchange, guard_of, post, serving
from tests.support.engines import GatedRuntime, WatchedEngine, dial, gated, until


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
