"""Short forms of `make chaos`, on a tiny family in edge mode; the long forms have the figures."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest import chaos_cases as cases
from loadtest.client import Question
from loadtest.http import HTTP
from loadtest.open_loop import offer
from loadtest.served import Served, serve
from loadtest.standing import Counters, Figure, statuses
from models.store import Store
from tests.support.tiny_family import publish_tiny_family

pytestmark = pytest.mark.served

QUESTIONS = [Question(f"refund w{n % 50} w{n // 50 % 50}", "strict") for n in range(600)]
POISON = Question("my poison please", "strict")
TOO_LONG = Question("word " * 2000, "strict")
# What depends on the clock of a shared machine is judged by `make chaos`, and not here.
TIMED = ("p99", "offered", "answered, of the capacity", "back to normal", "slowest", "exit after")


def settings(store: Store) -> dict[str, object]:
    return {
        "model.store": store.root,
        "model.family": "tiny",
        "cache.enabled": "false",
        "energy.source": "estimated",
        "batching.workers": 1,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("standing")


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    store = Store(folder / "store")
    publish_tiny_family(store)
    return store


@pytest.fixture(scope="module")
def names(store: Store) -> tuple[str, str]:
    return cases.second_version(store, "tiny")


@pytest.fixture(scope="module")
def served(folder: Path, store: Store, names: tuple[str, str]) -> Iterator[Served]:
    with serve(folder / "edge", settings(store), edge=True) as served:
        yield served


@pytest.fixture(scope="module")
def place(folder: Path, store: Store) -> cases.Place:
    return cases.Place(store.root, "tiny", folder / "edge" / "run")


def missed(figures: list[Figure]) -> list[Figure]:
    return [figure for figure in figures if not figure.met and not figure.name.startswith(TIMED)]


def test_a_server_that_is_alive_and_ready_says_both(served: Served) -> None:
    assert HTTP.get(f"{served.url}/live").status_code == 200
    assert HTTP.get(f"{served.url}/health").status_code == 200
    assert {"/live", "/health"} <= HTTP.get(f"{served.url}/openapi.json").json()["paths"].keys()


def test_the_start_is_told_in_cpu_seconds_and_joules(served: Served) -> None:
    def told() -> dict[str, float | None]:
        figures: dict[str, float | None] = HTTP.get(f"{served.metrics_url}/healthz").json()
        return figures

    cases.wait_for(lambda: told()["startup_joules"] is not None, 20, "the node has seen the replica")
    figures = told()
    cpu_seconds, joules = figures["startup_cpu_seconds"], figures["startup_joules"]
    assert cpu_seconds is not None
    assert 0.1 < cpu_seconds < 600
    assert joules is not None
    assert joules > 0
    shown = HTTP.get(f"{served.metrics_url}/metrics").text
    assert f"jouleserve_startup_cpu_seconds {cpu_seconds}" in shown
    assert f"jouleserve_startup_joules {joules}" in shown
    cases.wait_for(lambda: "the start took" in served.log.read_text(), 20, "the line about the start")


def test_past_the_queue_the_answer_is_429_with_retry_after_and_calm_returns(served: Served, place: cases.Place) -> None:
    """The tiny model is faster than HTTP, so that a queue of one stands for an overload; three times the capacity of a
    real one is offered by `make chaos`."""
    rate = cases.capacity(served, QUESTIONS, 400)
    set_queue(served, place, 1)
    outcomes, _ = offer("127.0.0.1", served.port, QUESTIONS, rate, 2)
    refused = [one for one in outcomes if one.status == 429]
    set_queue(served, place, 512)
    assert {one.status for one in outcomes} == {200, 429}
    assert all(one.retry_after for one in refused)
    with cases.load(served, itertools.cycle(QUESTIONS), 2) as answers:
        time.sleep(0.5)
    assert set(statuses(answers)) == {200}


def set_queue(served: Served, place: cases.Place, requests: int) -> None:
    place.jouleserve("tune", f"batching.max_queue_requests={requests}")
    cases.wait_for(lambda: cases.info(served)["max_concurrent_requests"] == requests, 20, "the bound is taken")


def test_poison_fails_alone(served: Served) -> None:
    assert missed(cases.poison(served, QUESTIONS, POISON, bursts=3)) == []
    assert missed(cases.poison(served, QUESTIONS, TOO_LONG, bursts=3)) == []


def test_a_new_version_and_its_rollback_lose_and_mix_nothing(
    served: Served, place: cases.Place, names: tuple[str, str]
) -> None:
    figures = cases.versions(served, place, names, QUESTIONS[:100], requests=800, rounds=1)
    assert missed(figures) == []


def test_settings_change_under_load_without_a_failure(served: Served, place: cases.Place) -> None:
    assert missed(cases.settings(served, place, QUESTIONS, changes=1)) == []


def test_no_counter_goes_back_and_the_series_stay_the_same_under_steady_load(served: Served) -> None:
    """Those that begin with the first batch of a size are there when the load has settled."""
    counters = Counters(served.metrics_url)
    counters.read()
    with cases.load(served, itertools.cycle(QUESTIONS), 4) as answers:
        time.sleep(1.5)
        counters.read()
        before = counters.series
        for _ in range(3):
            time.sleep(0.5)
            counters.read()
    counters.read()
    assert set(statuses(answers)) == {200}
    assert counters.fallen == []
    assert counters.series == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_under_load_ends_the_server_after_what_was_accepted(
    tmp_path: Path, store: Store, number: signal.Signals
) -> None:
    # What is ignored here (under nohup) is ignored by the server, too, as it should be.
    ignored = signal.signal(number, signal.SIG_DFL)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, number, ignored)
        served = stack.enter_context(serve(tmp_path, settings(store), edge=True))
        figures = cases.stop_under_load(served, QUESTIONS, number=number, within_s=30)
        assert missed(figures) == []
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", served.port), timeout=5):
            pass
        state = json.loads((tmp_path / "run" / "node.json").read_text())
    assert state, "the totals were not kept"
