"""What the two ways into the engine have in common."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from server.api.app import App
from server.api.asking import Client, ask
from server.api.http import head_of
from server.api.replies import Replies
from server.engine.engine import Engine
from server.engine.errors import Overloaded
from server.engine.family import Family
from server.engine.scheduler import Scheduler
from server.engine.tokenizer import Text
from server.guard import Guard, RateLimit
from tests.support.engines import gated, running, until
from tests.support.rpc import Meter


async def status_of(replies: Replies, way: str, text: str) -> int:
    """200, or 429 for a refusal by an engine that is full. Raises what else `ask` raises."""
    if way == "predict":
        reply = await replies.predict(b'{"inputs": "%b"}' % text.encode(), head_of({"headers": []}))
        assert reply is not None
        return reply.status
    try:
        await ask(replies, [Text(text)], "standard", None, Client())
    except Overloaded:
        return 429
    return 200


@pytest.mark.parametrize("way", ["predict", "ask"])
async def test_a_text_that_the_engine_had_no_room_for_is_paid_for_once(family: Family, way: str) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    guard = Guard(None, RateLimit(0.001, 3), clock=lambda: 0.0)
    async with running(held, max_queue_requests=1) as (engine, usage):
        replies = Replies(engine, Meter(), 1000, usage, guard)
        first = asyncio.ensure_future(status_of(replies, way, "w1"))
        await until(lambda: bool(gates["full"].batches))
        second = asyncio.ensure_future(status_of(replies, way, "w2"))
        await until(lambda: engine.queued == 1)
        assert await status_of(replies, way, "w3") == 429
        assert usage.outcomes["shed"] == 1
        gates["full"].gate.set()
        assert (await first, await second) == (200, 200)
        assert await status_of(replies, way, "w3") == 200


@pytest.mark.parametrize("path", ["/health", "/v2/health/ready", "/v2/models/tiny/ready"])
async def test_who_has_lost_a_worker_is_not_ready(family: Family, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(family) as (engine, usage):
        app = App(Replies(engine, Meter(), 1000, usage), dict)
        assert await probe(app, path) == 200
        monkeypatch.setattr(Scheduler, "healthy", property(lambda self: False))
        assert isinstance(engine, Engine)
        assert await probe(app, path) == 503
        assert await probe(app, "/live") == 200
        assert usage.outcomes == {}  # no text was asked for


async def probe(app: App, path: str) -> int:
    """The status of a GET."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        return (await client.get(path)).status_code
