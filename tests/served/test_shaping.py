"""Shaping in a running server: what a bad feed does to requests, and strict requests while replicas die.

`STRICT_REQUESTS=100000 pytest tests/served/test_shaping.py -k strict` is the full run of the latter.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from loadtest.demo_tables import Reading, read_metrics
from loadtest.http import HTTP
from loadtest.served import Served, serve
from models.store import Store
from tests.served.conftest import GRID
from tests.support.feed_stub import reply
from tests.support.live_feed import Feed
from tests.support.tiny_family import publish_tiny_family

pytestmark = pytest.mark.served

WAIT_S = 40.0
FLAPPING_DWELL_S = 1.2
REQUESTS = int(os.environ.get("STRICT_REQUESTS", "0"))
"""So many requests at least, with the kills and the new versions spread over them."""
KILLS = max(2, REQUESTS // 5000)
CLIENTS = 8 if REQUESTS else 1


class Asking:
    """Asks all the time in threads, in all classes in turn, until it is told to stop."""

    def __init__(self, served: Served, *, tries: int, clients: int = 1) -> None:
        self.replies: list[tuple[str, int, str]] = []
        self._served, self._tries = served, tries
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(begin, clients), daemon=True) for begin in range(clients)
        ]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, number: int, step: int) -> None:
        with httpx.Client(timeout=15) as client:
            while not self._stop.is_set():
                number += step
                quality = ("strict", "standard", "eco")[number % 3]
                # Every other text has been asked before, in some class, and comes from the cache.
                text = f"card w{number % 40}" if number % 2 else f"card {number}"
                self.replies.append((quality, *self._ask(client, text, quality)))
                time.sleep(0.01 if step == 1 else 0)

    def _ask(self, client: httpx.Client, text: str, quality: str) -> tuple[int, str]:
        for _ in range(self._tries):
            with contextlib.suppress(httpx.HTTPError):
                url, headers = f"{self._served.url}/predict", {"X-Quality": quality}
                found = client.post(url, json={"inputs": text}, headers=headers)
                if found.status_code == 200:
                    return 200, found.headers["x-jouleserve-point"]
                if self._tries == 1:
                    return found.status_code, ""
            time.sleep(0.3)
        return 0, ""


def until(served: Served, holds: Callable[[Reading], bool], what: str) -> Reading:
    deadline = time.monotonic() + WAIT_S
    while True:
        metrics = read_metrics(served.metrics_url)
        if holds(metrics):
            return metrics
        assert time.monotonic() < deadline, f"not seen in {WAIT_S:g} s: {what}"
        time.sleep(0.2)


def at(point: str, step: int) -> Callable[[Reading], bool]:
    def holds(metrics: Reading) -> bool:
        return (
            metrics.label_values("jouleserve_dial_info", "point") == {point}
            and metrics.total("jouleserve_grid_step") == step
        )

    return holds


def refused(reason: str) -> Callable[[Reading], bool]:
    return lambda metrics: metrics.total("jouleserve_grid_refused_total", reason=reason) > 0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    publish_tiny_family(store)
    return store


@pytest.fixture
def feed() -> Iterator[Feed]:
    with Feed() as feed:
        yield feed


def test_whatever_the_feed_does_every_request_is_answered_and_the_ladder_s_step_is_shown(
    tmp_path: Path, store: Store, feed: Feed
) -> None:
    settings = {
        "model.store": store.root,
        "model.family": "tiny",
        "grid.provider": "uk",
        "grid.base_url": feed.url,
        "grid.max_attempts": 1,
        "grid.request_timeout_s": 2,
        "grid.cached_max_age_s": 120,
        "grid.live_max_age_s": 120,
        "shaping.policy": "threshold",
        "shaping.dirty_above_grams_per_kwh": 250,
        "shaping.clean_below_grams_per_kwh": 200,
        "shaping.poll_period_s": 0.2,
        "shaping.min_dwell_s": FLAPPING_DWELL_S,
        "energy.source": "estimated",
    }
    with serve(tmp_path, settings, edge=True) as served, Asking(served, tries=1) as asking:
        until(served, at("full", 0), "the clean grid")
        feed.grams = 280
        until(served, at("lite", 0), "the dirty grid")
        feed.answer = reply(500, b"dead")
        until(served, lambda m: at("lite", 1)(m) and refused("ProviderFailed")(m), "cached while the feed is dead")
        feed.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<html>"
        until(served, refused("Malformed"), "the garbled feed")
        feed.answer = None
        feed.grams = 2800  # ten times as much: it is held back, and what was known goes on
        until(served, refused("Implausible"), "the lying feed")
        feed.grams = 120
        until(served, at("full", 0), "normal quality in the end")
        feed.flapping = True
        before = read_metrics(served.metrics_url).total("jouleserve_dial_switches_total")
        began = time.monotonic()
        time.sleep(3 * FLAPPING_DWELL_S)
        spent_s = time.monotonic() - began
        after = read_metrics(served.metrics_url).total("jouleserve_dial_switches_total")
        assert after - before <= 2 * (spent_s / FLAPPING_DWELL_S + 1)
    assert len(asking.replies) > 50
    assert {status for _, status, _ in asking.replies} == {200}
    assert {point for quality, _, point in asking.replies if quality == "strict"} == {"full"}


@pytest.mark.timeout(600 + REQUESTS // 50)
def test_strict_is_never_degraded_while_replicas_die_and_start(tmp_path: Path, store: Store) -> None:
    grid = tmp_path / "grid.csv"
    grid.write_text(GRID)
    settings = {
        "model.store": store.root,
        "model.family": "tiny",
        "grid.provider": "replay",
        "grid.replay_path": grid,
        "grid.replay_speed": 1800,  # an hour of the recording in 2 s
        "shaping.policy": "threshold",
        "shaping.poll_period_s": 0.5,
        "shaping.min_dwell_s": 0,
        "energy.source": "estimated",
    }
    versions = itertools.cycle([store.current("tiny"), publish_tiny_family(store, scale=2.0).name])
    with serve(tmp_path, settings) as served, Asking(served, tries=60, clients=CLIENTS) as asking:
        for kill in range(1, KILLS + 1):
            store.set_current("tiny", next(versions))
            pid = pid_of(served)
            until_points(asking, {"full", "lite"})
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + WAIT_S
            while pid_of(served) in (0, pid):
                assert time.monotonic() < deadline, served.tail()
                time.sleep(0.3)
            while len(asking.replies) < kill * REQUESTS // KILLS:
                assert time.monotonic() < deadline + REQUESTS / KILLS / 10, "fewer than ten replies a second"
                time.sleep(0.3)
        until_points(asking, {"full", "lite"})
    assert {status for _, status, _ in asking.replies} == {200}
    strict = [point for quality, _, point in asking.replies if quality == "strict"]
    assert set(strict) == {"full"}
    assert {point for quality, _, point in asking.replies if quality == "eco"} <= {"nano", "lite", "full"}


def pid_of(served: Served) -> int:
    """Of the replica that answers; 0 while none does."""
    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
        return int(HTTP.get(f"{served.url}/info", timeout=5).json()["pid"])
    return 0


def until_points(asking: Asking, points: set[str]) -> None:
    """Wait until standard requests from now on were answered by all of these points."""
    begin, deadline = len(asking.replies), time.monotonic() + WAIT_S
    while not points <= {point for quality, _, point in asking.replies[begin:] if quality == "standard"}:
        assert time.monotonic() < deadline, f"{points} did not all answer"
        time.sleep(0.2)
