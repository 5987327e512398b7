"""A tiny family in memory, loaded once."""

from __future__ import annotations

import pytest

from models.store import Store
from server.engine.family import Family, load_family
from tests.support.tiny_family import publish_tiny_family


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load_family(publish_tiny_family(Store(tmp_path_factory.mktemp("store"))))


@pytest.fixture(scope="session")
def tenfold(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Another version, whose scores are ten times as large."""
    return load_family(publish_tiny_family(Store(tmp_path_factory.mktemp("store")), scale=10.0))


@pytest.fixture(scope="session")
def cascaded(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family with a cascade: `nano` is sure of five equal words, and unsure of four."""
    return load_family(publish_tiny_family(Store(tmp_path_factory.mktemp("store")), threshold=0.6))
