"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from models.store import Store, Version
from tests.support.tiny_family import publish_tiny_family

# How long an example takes is the machine's business, and no test asserts times.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def tiny_version(tmp_path: Path) -> Version:
    """A published family small enough to be made in milliseconds; real ONNX files, real tokenizer."""
    return publish_tiny_family(Store(tmp_path / "store"))
