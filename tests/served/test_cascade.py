"""A cascade in a running server: who answers which text, what is counted, and that both runs are booked."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from loadtest.demo_tables import read_metrics
from loadtest.served import Served, serve
from models.store import Store
from tests.support.tiny_family import CASCADE, publish_tiny_family

pytestmark = pytest.mark.served

SURE = [f"{'card ' * 6} w{number}" for number in range(40)]
UNSURE = [f"parcel w{number}" for number in range(40)]
WAIT_S = 20.0


def test_sure_texts_are_answered_by_the_small_variant_and_the_others_by_the_large_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    publish_tiny_family(store, threshold=0.6)
    settings = {
        "model.store": store.root,
        "model.family": "tiny",
        "shaping.policy": "pin",
        "shaping.pin_point": CASCADE,
        "energy.source": "estimated",
    }
    with serve(tmp_path, settings, edge=True) as served:
        with httpx.Client() as client, ThreadPoolExecutor(8) as pool:

            def ask(text: str, **headers: str) -> httpx.Response:
                reply = client.post(f"{served.url}/predict", json={"inputs": text}, headers=headers)
                reply.raise_for_status()
                return reply

            mixed = [text for pair in zip(SURE, UNSURE, strict=True) for text in pair]
            replies = dict(zip(mixed, pool.map(ask, mixed), strict=True))
            strict = ask("refund strictly", **{"X-Quality": "strict"})
            kept = ask(UNSURE[0], **{"X-Quality": "strict"})
        for text, reply in replies.items():
            said = (reply.headers["x-jouleserve-variant"], reply.headers.get("x-jouleserve-escalated"))
            assert said == (("nano", None) if text in SURE else ("full", "1"))
            assert reply.headers["x-jouleserve-point"] == CASCADE
            assert reply.json()[0]["label"] == ("card" if text in SURE else "parcel")
        assert (strict.headers["x-jouleserve-variant"], strict.headers["x-jouleserve-point"]) == ("full", "full")
        assert "x-jouleserve-escalated" not in strict.headers
        # The large variant has answered it already, for the cascade.
        assert (kept.headers["x-jouleserve-point"], kept.headers["x-jouleserve-cache"]) == ("full", "hit")
        check_books(served)


def check_books(served: Served) -> None:
    """Each text counts once, by the variant that answered it; both variants' runs are in the books; they balance."""
    expected = {("nano", CASCADE): len(SURE), ("full", CASCADE): len(UNSURE), ("full", "full"): 2}
    deadline = time.monotonic() + WAIT_S
    while True:
        metrics = read_metrics(served.metrics_url)
        counted = {who: metrics.total("jouleserve_requests_total", variant=who[0], point=who[1]) for who in expected}
        if counted == expected or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert counted == expected
    assert metrics.total("jouleserve_escalations_total") == len(UNSURE)
    # Rows that ran: every text of the cascade in the small variant, the unsure ones and a strict one in the large.
    assert metrics.total("jouleserve_batch_rows_sum") == len(SURE) + 2 * len(UNSURE) + 1
    assert metrics.total("jouleserve_attributed_joules_total", variant="nano") > 0
    assert metrics.total("jouleserve_attributed_joules_total", variant="full") > 0
    assert metrics.total("jouleserve_energy_conservation_error_ratio") <= 0.001
