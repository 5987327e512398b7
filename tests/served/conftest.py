"""A real server (Ray Serve, HAProxy, node process) on a tiny family, shared by the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.served import Served, serve
from models.store import Store
from tests.support.tiny_family import publish_tiny_family

GRID = """utc_time,grams_per_kwh
2025-01-01T00:00:00Z,100
2025-01-01T01:00:00Z,500
2025-01-01T03:00:00Z,100
2025-01-01T12:00:00Z,100
"""
POLL_S = 4.0
DWELL_S = 6.0
REPLAY_SPEED = 240.0  # an hour of the recording in 15 s


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one version of the tiny family."""
    store = Store(tmp_path_factory.mktemp("models") / "store")
    publish_tiny_family(store)
    return store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[Served]:
    """The server; its grid is clean for a quarter of a minute, dirty for half of one, then clean again."""
    folder = tmp_path_factory.mktemp("s")
    grid = Path(folder) / "grid.csv"
    grid.write_text(GRID)
    settings = {
        "model.store": store.root,
        "model.family": "tiny",
        "grid.provider": "replay",
        "grid.replay_path": grid,
        "grid.replay_speed": REPLAY_SPEED,
        "shaping.poll_period_s": POLL_S,
        "shaping.min_dwell_s": DWELL_S,
        "cache.enabled": "false",
    }
    with serve(folder, settings) as served:
        yield served
