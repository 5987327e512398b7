"""Whatever is sent to a running server, the answer is one that its OpenAPI document lists, and the server lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.fuzz import fuzz
from loadtest.served import serve
from models.store import Store
from tests.support.tiny_family import publish_tiny_family

pytestmark = pytest.mark.served

CASES = 200


def test_made_up_requests_get_documented_answers_from_a_server_that_lives(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    publish_tiny_family(store)
    with serve(tmp_path, {"model.store": store.root, "model.family": "tiny"}, edge=True) as served:
        tally = fuzz(served.port, CASES)
        assert served.process.poll() is None
    assert tally.failures == []
    assert tally.cases >= 0.9 * CASES
    statuses = {status for _, status in tally.answers}
    assert {200, 400, 413, 422} & statuses >= {200, 422}
    assert served.process.returncode == 0
