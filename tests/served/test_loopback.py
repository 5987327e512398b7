"""Nothing listens beyond loopback, and servers on one machine keep out of each other's way."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from loadtest.http import HTTP
from loadtest.served import Served, serve
from models.store import Store
from tests.served.sockets import beyond_loopback, is_loopback, listeners
from tests.support.tiny_family import publish_tiny_family

pytestmark = pytest.mark.served


def place(folder: Path, scale: float) -> dict[str, object]:
    """A store with a version of its own."""
    store = Store(folder / "store")
    publish_tiny_family(store, scale=scale)
    return {"model.store": store.root, "model.family": "tiny", "cache.enabled": "false"}


def version_and_label(served: Served) -> tuple[str, str]:
    reply = HTTP.post(f"{served.url}/predict", json={"inputs": "my refund"}, timeout=20)
    assert reply.status_code == 200
    return reply.headers["x-jouleserve-version"], reply.json()[0]["label"]


def test_servers_on_one_machine_listen_on_loopback_alone_and_do_not_collide(tmp_path: Path) -> None:
    """Two behind Ray Serve and one in edge mode at once: every socket of every process of theirs is looked at, and
    each answers with its own version. One of them stops, and the others do not notice."""
    with (
        serve(tmp_path / "edge", place(tmp_path / "e", 3.0), edge=True) as edge,
        serve(tmp_path / "one", place(tmp_path / "o", 1.0)) as one,
    ):
        with serve(tmp_path / "two", place(tmp_path / "t", 2.0)) as two:
            for served in (edge, one, two):
                pid = served.process.pid
                assert len(listeners(pid)) >= (2 if served is edge else 10), "the look at the sockets sees too few"
                assert beyond_loopback(pid) == set()
            versions = {version_and_label(served) for served in (edge, one, two)}
            assert len(versions) == 3
            pids = [{child.pid for child in _tree(served)} for served in (edge, one, two)]
            assert sum(map(len, pids)) == len(set.union(*pids))
            second = version_and_label(two)
        assert two.process.returncode == 0
        assert {version_and_label(edge), version_and_label(one), second} == versions
    assert [edge.process.returncode, one.process.returncode] == [0, 0]


def _tree(served: Served) -> list[psutil.Process]:
    root = psutil.Process(served.process.pid)
    return [root, *root.children(recursive=True)]


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:0.0.0.0", False),
        ("10.0.0.4", False),
        ("fe80::1", False),
    ],
)
def test_an_address_is_told_from_loopback_in_every_notation(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback
