"""A real server (Ray Serve, HAProxy, node process) on a tiny family, shared by the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.served import Served, serve
from models.store import Store
from tests.support.tiny_family import publish_tiny_family

POLL_S = 0.5
DWELL_S = 8.0
REPLAY_SPEED = 720.0  # an hour of the recording in 5 s
# A clean hour and a dirty one in turn, for days: the dirty hour is shorter than the dwell, and however long the server
# takes to start there are enough of both to come.
GRID = "utc_time,grams_per_kwh\n" + "".join(
    f"2025-01-{1 + hour // 24:02d}T{hour % 24:02d}:00:00Z,{500 if hour % 2 else 100}\n" for hour in range(16 * 24)
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one version of the tiny family."""
    store = Store(tmp_path_factory.mktemp("models") / "store")
    publish_tiny_family(store)
    return store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[Served]:
    """The server; its grid is clean and dirty in turns of five seconds."""
    folder = tmp_path_factory.mktemp("s")
    grid = Path(folder) / "grid.csv"
    grid.write_text(GRID)
    settings = {
        "model.store": store.root,
        "model.family": "tiny",
        "grid.provider": "replay",
        "grid.replay_path": grid,
        "grid.replay_speed": REPLAY_SPEED,
        "shaping.policy": "threshold",
        "shaping.poll_period_s": POLL_S,
        "shaping.min_dwell_s": DWELL_S,
        "cache.enabled": "false",
        "energy.source": "estimated",
    }
    with serve(folder, settings) as served:
        yield served
