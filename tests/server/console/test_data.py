"""What the page is told, and by whom it may be asked."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.store import Version
from server.api.app import App
from server.api.replies import Replies
from server.console.data import FRESH_S, ConsoleData, without_comments
from server.engine.engine import Engine
from server.engine.family import Family, load_family
from server.guard import Guard
from tests.support.engines import running
from tests.support.listening import NoJoules

EXPOSITION = b'# HELP a help\n# TYPE a counter\na_total 3.0\n\nb{c="# d"} 1.0\n'


@pytest.fixture
def family(tiny_version: Version) -> Family:
    return load_family(tiny_version)


class Bench:
    """The data of an engine, with a node process and a clock that the test moves."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.now_s = 100.0
        self.scrapes = 0
        self.answer: bytes | None = EXPOSITION
        self.grid_file = folder / "grid.json"
        self.data = ConsoleData(
            engine,
            lambda: {"version": 7},
            scrape=self.scrape,
            grid_file=self.grid_file,
            tunable=True,
            clock=lambda: self.now_s,
        )

    async def scrape(self) -> bytes | None:
        self.scrapes += 1
        await asyncio.sleep(0.01)
        return self.answer

    async def current(self) -> dict[str, Any]:
        self.now_s += FRESH_S
        told: dict[str, Any] = json.loads(await self.data.current())
        return told


async def test_it_tells_of_metrics_points_dial_and_settings(family: Family, tmp_path: Path) -> None:
    async with running(family, standard="lite") as (engine, _):
        bench = Bench(engine, tmp_path)
        bench.grid_file.write_text('{"grams_per_kwh": 200, "changes": []}')
        told = await bench.current()
    assert told["metrics"] == 'a_total 3.0\nb{c="# d"} 1.0'
    assert [point["name"] for point in told["points"]] == ["full", "lite", "nano"]
    assert told["dial"]["point_by_class"]["standard"] == "lite"
    assert told["tunables"] == {"version": 7}
    assert told["grid"]["grams_per_kwh"] == 200
    assert (told["tunable"], told["accuracy_name"]) == (True, "accuracy")


async def test_what_is_not_there_is_null(family: Family, tmp_path: Path) -> None:
    async with running(family) as (engine, _):
        bench = Bench(engine, tmp_path)
        bench.answer = None
        assert (told := await bench.current())["metrics"] is None
        assert told["grid"] is None
        bench.grid_file.write_text('{"grams_per_kwh": 2')
        assert (await bench.current())["grid"] is None


async def test_however_many_look_the_node_process_is_asked_once_a_second(family: Family, tmp_path: Path) -> None:
    async with running(family) as (engine, _):
        bench = Bench(engine, tmp_path)
        told = await asyncio.gather(*(bench.data.current() for _ in range(50)))
        assert bench.scrapes == 1
        assert len(set(told)) == 1
        bench.now_s += FRESH_S
        await bench.data.current()
    assert bench.scrapes == 2


async def test_page_and_data_are_open_where_everything_else_asks_for_a_key(family: Family, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alice: sha256:{hashlib.sha256(b'key').hexdigest()}\n")
    keys.chmod(0o600)
    async with running(family) as (engine, usage):
        replies = Replies(engine, NoJoules(), 10_000, usage, Guard(keys, None, lambda: 0.0))
        app = App(replies, lambda: {"pid": 1}, Bench(engine, tmp_path).data)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            page, data, info = [await client.get(path) for path in ("/console", "/console/data", "/info")]
            posted = await client.post("/console/data", json={})
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert (data.status_code, data.headers["cache-control"]) == (200, "no-store")
    assert info.status_code == 401
    assert posted.status_code == 405
    assert not {"pid", "store"} & data.json().keys()


async def test_without_data_there_is_no_page(family: Family) -> None:
    async with running(family) as (engine, usage):
        app = App(Replies(engine, NoJoules(), 10_000, usage), dict)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            assert (await client.get("/console")).status_code == 404


def test_comments_are_left_out() -> None:
    assert without_comments(b"# a\nb 1\n") == "b 1"
