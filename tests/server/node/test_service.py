"""The node process's parts together, in this process, so that its clock can be moved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.node import service as node_service
from server.node.hours import FOLDER, read_lines
from server.node.service import NodeService
from server.node.settings import NodeSettings

NOON_S = 1_795_780_800.0


class Wall:
    """The time of day, which a test moves."""

    def __init__(self) -> None:
        self.now_s = NOON_S

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    clock = Wall()
    shown = SimpleNamespace(time=clock.time, process_time=time.process_time)
    monkeypatch.setattr(node_service, "time", shown)
    return clock


@asynccontextmanager
async def running(run_dir: Path) -> AsyncIterator[NodeService]:
    settings = NodeSettings(run_dir=run_dir, port=0, energy_source="estimated", tick_seconds=0.05, persist_seconds=0.1)
    service = NodeService(settings)
    task = asyncio.create_task(service.run())
    try:
        yield service
    finally:
        service.stopping.set()
        await task


async def eventually(holds: Callable[[], Any]) -> None:
    for _ in range(400):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("not within 8 s")


async def test_an_hour_is_in_its_file_only_after_the_totals_know_that_it_is_over(tmp_path: Path, wall: Wall) -> None:
    """On a full disk a line may still fit where the totals do not: after a kill the hour would be closed once more."""
    run_dir = tmp_path / "run"
    hours = run_dir / FOLDER

    def closed() -> list[str]:
        return [line["hour"][11:13] for path in sorted(hours.glob("????-??.jsonl")) for line in read_lines(path)]

    async with running(run_dir) as service:
        await eventually((run_dir / "node.json").exists)
        blocked = run_dir / ".node.json.part"
        blocked.mkdir()
        wall.now_s += 3600
        await eventually(lambda: service._state.hours.unwritten)
        assert closed() == []
        blocked.rmdir()
        wall.now_s += 3600
        await eventually(lambda: len(closed()) == 2)
    assert closed() == ["12", "13"]
