"""A node process that runs apart, as a DaemonSet's: its port is in another network than those who report to it."""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from models.store import Version
from server.console.data import console_data
from server.engine.family import load_family
from server.ledger_view import print_conservation
from server.node import wire
from server.node.figures import ask_node, node_says
from server.settings import Settings
from tests.server.node.test_node_process import Node
from tests.support.engines import running

NOBODYS_PORT = 9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shared with a group, as the DaemonSet's init container makes it."""
    folder = tmp_path / "node"
    folder.mkdir()
    folder.chmod(0o2770)
    return folder


@pytest.fixture
def node(folder: Path) -> Iterator[Node]:
    node = Node(folder)
    yield node
    node.stop()


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> Settings:
    """Of a server that reports to it."""
    return Settings.model_validate(
        {"server": {"run_dir": tmp_path / "run", "metrics_port": NOBODYS_PORT}, "energy": {"node_dir": folder}}
    )


async def test_servers_ask_it_by_a_socket_in_its_folder_that_its_group_may_use(node: Node, settings: Settings) -> None:
    figures = await ask_node(settings.node_address)
    assert figures is not None
    assert figures.node
    assert b"jouleserve_build_info" in (await node_says(settings.node_address, "/metrics") or b"")
    assert settings.node_address.socket is not None
    assert stat.S_IMODE(os.stat(settings.node_address.socket).st_mode) == 0o660


async def test_it_answers_again_after_a_kill_and_leaves_no_socket_at_its_end(
    node: Node, settings: Settings, folder: Path
) -> None:
    node.kill()
    assert await ask_node(settings.node_address) is None
    again = Node(folder)
    assert await ask_node(settings.node_address) is not None
    assert again.stop() == 0
    assert not (folder / wire.PAGES_SOCKET).exists()


async def test_the_console_shows_its_figures_and_its_grid(
    node: Node, settings: Settings, folder: Path, tiny_version: Version
) -> None:
    (folder / "grid.json").write_text('{"grams_per_kwh": 321, "changes": []}')
    async with running(load_family(tiny_version)) as (engine, _):
        told = json.loads(await console_data(engine, dict, settings).current())
    assert "jouleserve_replicas" in told["metrics"]
    assert told["grid"]["grams_per_kwh"] == 321


def test_its_books_are_shown_on_the_command_line(node: Node, settings: Settings) -> None:
    said = io.StringIO()
    assert print_conservation(Console(file=said, width=120), settings.node_address, None) == 0
    assert "conservation error" in said.getvalue()
    ahead = "99999999999999.0.0.0.0.0"
    assert print_conservation(Console(file=said, width=120), settings.node_address, ahead) == 1
    assert "take a new mark" in said.getvalue()
    node.stop()
    assert print_conservation(Console(file=said, width=120), settings.node_address, None) == 1
    assert wire.PAGES_SOCKET in said.getvalue()
