"""The floor measures the published model itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.floor import measure
from models.store import Store, Version


def test_the_floor_of_a_published_family_is_measured(tiny_version: Version) -> None:
    store = Store(tiny_version.path.parent.parent)
    found = measure(store.root, "tiny", "lite", ["my card", "where is my parcel please"] * 40, rows=8)
    assert found["cpu_seconds_per_1k"] > found["tokenize_cpu_seconds_per_1k"] > 0
    assert found["mean_tokens"] == 3.5


def test_an_unknown_point_is_named(tiny_version: Version) -> None:
    with pytest.raises(KeyError, match="best"):
        measure(Path(tiny_version.path.parent.parent), "tiny", "best", ["card"], rows=8)
