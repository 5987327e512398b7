"""The node's side of the socket with a replica's real link, in one loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from energy.coefficients import CpuCoefficients
from energy.idle import IdleModel
from energy.ledger import Ledger
from server.node.replicas import Replicas
from server.node.settle import Settlement
from server.node.totals import ServingTotals
from server.usage import NodeLink, Usage


async def until(holds: object) -> None:
    assert callable(holds)
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 5 s")


@pytest.mark.parametrize("visible", [True, False])
async def test_a_replica_that_left_is_still_known_to_be_visible_or_not(tmp_path: Path, visible: bool) -> None:
    books = Settlement(Ledger(), ServingTotals(), IdleModel.fresh(CpuCoefficients("test", 1.0, 3.0, "none")), 2.0)
    replicas = Replicas(tmp_path, books, lambda pid, started: visible)
    usage = Usage("intents")
    link = NodeLink(tmp_path, usage)
    replicas.open(asyncio.get_running_loop())
    try:
        await link.start()
        await until(lambda: replicas.peers)
        usage.request("full", "full", "eco", "ok", 7000)
        await link.close()
        await until(lambda: not replicas.peers)
        account = books.replicas[usage.instance]
        assert (account.gone, account.visible) == (True, visible)
        assert account.newest is not None
        assert account.newest.cpu_ns == 7000
    finally:
        replicas.close()
