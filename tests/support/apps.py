"""The ASGI app around the tiny family, asked without a network."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from server.api.app import App
from server.api.replies import Replies
from server.engine.family import Family
from server.guard import Guard, RateLimit
from tests.support.engines import WatchedEngine, running

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
    """A client, the app that it asks, and the app's engine."""
    async with running(family, **options) as (engine, usage):
        app = App(Replies(engine, Meter(), MAX_BODY, usage, guard), lambda: {"pid": 1})
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client, app, engine


async def post(client: httpx.AsyncClient, inputs: Any = "card", **fields: Any) -> httpx.Response:
    """Ask `/predict`."""
    return await client.post("/predict", json={"inputs": inputs, **fields})


KEY = "open sesame"
KEYED = {"authorization": f"Bearer {KEY}"}


def guard_of(folder: Path, texts_per_s: float = 1.0, burst_texts: int = 1) -> Guard:
    """A guard that knows one key, which may ask for one text."""
    path = folder / "keys"
    path.write_text(f"ali: sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    path.chmod(0o600)
    return Guard(path, RateLimit(texts_per_s, burst_texts), lambda: 1.0)


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
    """A piece of a body as ASGI hands it over."""
    return {"type": "http.request", "body": body, "more_body": more}
