"""A stub of a provider's API on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.feed_stub import Pauses, Stub, listening


@pytest.fixture
async def stub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with listening(Stub()) as stub:
        yield stub


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()
