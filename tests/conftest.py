"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.store import Store, Version
from tests.support.tiny_family import publish_tiny_family


@pytest.fixture
def tiny_version(tmp_path: Path) -> Version:
    """A published family small enough to be made in milliseconds; real ONNX files, real tokenizer."""
    return publish_tiny_family(Store(tmp_path / "store"))
