"""What a user, an operator and an accident may do to a real server: Ray Serve, HAProxy and the node process."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from loadtest.client import Question, Run, closed_loop
from loadtest.demo_tables import read_metrics
from loadtest.served import Served
from models.store import Store
from tests.served.conftest import DWELL_S, POLL_S
from tests.support.tiny_family import publish_tiny_family

pytestmark = pytest.mark.served

QUESTIONS = [Question(f"refund w{n % 50} w{n // 50}", label="refund") for n in range(1000)]


def ask(server: Served, text: str, quality: str = "standard") -> httpx.Response:
    return httpx.post(f"{server.url}/predict", json={"inputs": text}, headers={"X-Quality": quality}, timeout=10)


def jouleserve(server: Served, *arguments: str) -> subprocess.CompletedProcess[str]:
    run_dir = server.log.parent / "run"
    port = server.metrics_url.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "server.cli", *arguments]
    command += ["--set", f"server.run_dir={run_dir}", "--set", f"server.metrics_port={port}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)


@contextmanager
def steady_load(server: Served, clients: int = 8) -> Iterator[Run]:
    """Load in the background for as long as the block lasts; its replies are there afterwards."""
    done = threading.Event()
    collected = Run()

    def work() -> None:
        run = asyncio.run(
            closed_loop(f"{server.url}/predict", itertools.cycle(QUESTIONS), clients, done.is_set, pause_s=0.005)
        )
        collected.replies += run.replies

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield collected
    finally:
        done.set()
        thread.join(60)


def replica_pid(server: Served) -> int:
    pid: int = httpx.get(f"{server.url}/info", timeout=10).json()["pid"]
    return pid


def attributed(server: Served) -> float:
    return read_metrics(server.metrics_url).total("jouleserve_attributed_joules_total")


def test_an_hour_of_dirty_grid_moves_standard_requests_and_no_strict_one(server: Served) -> None:
    """Runs first: the recording is clean, then dirty, then clean again while it looks."""
    grid_file = server.log.parent / "run" / "grid.json"
    wait_for(grid_file.exists, 10, "the first look at the grid")
    seen: list[tuple[float, float, dict[str, httpx.Response]]] = []
    started = time.monotonic()
    while time.monotonic() - started < 70:
        grams = json.loads(grid_file.read_text())["grams_per_kwh"]
        seen.append((time.monotonic(), grams, {q: ask(server, "my refund", q) for q in ("strict", "standard", "eco")}))
        if any(g > 350 for _, g, _ in seen) and grams < 300 and _point(seen[-1][2]["standard"]) == "full":
            break
        time.sleep(0.25)
    dirty = [at for at, grams, _ in seen if grams > 350]
    assert dirty, "the recording never became dirty"
    assert {_point(replies["strict"]) for _, _, replies in seen} == {"full"}
    assert {_point(replies["eco"]) for _, _, replies in seen} == {"nano"}
    moved = [at for at, _, replies in seen if _point(replies["standard"]) == "lite"]
    assert moved, "standard requests never moved"
    assert moved[0] - dirty[0] <= 2 * POLL_S
    returned = [at for at, _, replies in seen if at > moved[0] and _point(replies["standard"]) == "full"]
    assert returned, "standard requests never returned"
    assert returned[0] - moved[0] >= DWELL_S - POLL_S
    reasons = {replies["standard"].headers["x-jouleserve-reason"].split(":")[0] for _, _, replies in seen}
    assert {"grid-clean", "grid-dirty"} <= reasons
    assert {replies["strict"].headers["x-jouleserve-reason"] for _, _, replies in seen} == {"strict"}


def _point(reply: httpx.Response) -> str:
    assert reply.status_code == 200
    return reply.headers["x-jouleserve-point"]


def test_an_answer_names_its_joules_and_their_source(server: Served) -> None:
    reply = ask(server, "where is my parcel")
    assert reply.json()[0]["label"] == "parcel"
    assert float(reply.headers["x-jouleserve-joules"]) > 0
    assert reply.headers["x-jouleserve-joules-source"] == "estimated"


def test_settings_change_under_load_without_a_lost_request(server: Served) -> None:
    pid = replica_pid(server)
    with steady_load(server) as load:
        time.sleep(1)
        tuned = jouleserve(server, "tune", "batching.max_rows=3", "--set", "model.family=tiny", "--set",
                           f"model.store={_store_root(server)}")  # fmt: skip
        assert tuned.returncode == 0, tuned.stderr
        wait_for(
            lambda: httpx.get(f"{server.url}/info").json()["max_batch_requests"] == 3,
            20,
            "the replica takes the change",
        )
    assert replica_pid(server) == pid
    assert len(load.replies) > 100
    assert {reply.status for reply in load.replies} == {200}


def test_a_wrong_setting_is_refused_with_its_name_and_changes_nothing(server: Served) -> None:
    before = httpx.get(f"{server.url}/info").json()["tunables"]
    refused = jouleserve(server, "tune", "shaping.clean_below_grams_per_kwh=900", "--set", "model.family=tiny", "--set",
                         f"model.store={_store_root(server)}")  # fmt: skip
    assert refused.returncode == 2
    assert "clean_below_grams_per_kwh" in refused.stderr
    time.sleep(2.5)
    assert httpx.get(f"{server.url}/info").json()["tunables"] == before


def test_a_corrupt_new_version_is_refused_and_the_old_one_serves_on(server: Served, store: Store) -> None:
    before = httpx.get(f"{server.url}/info").json()["model_sha"]
    corrupt = publish_tiny_family(store, scale=3.0)
    model = corrupt.file(corrupt.manifest.variants[0].model)
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    wait_for(lambda: "version_refused" in server.log.read_text(), 20, "the refusal is logged")
    assert corrupt.name in server.log.read_text()
    assert ask(server, "my refund").headers["x-jouleserve-version"] == before


def test_a_sound_new_version_takes_over_under_load_without_a_lost_request(server: Served, store: Store) -> None:
    with steady_load(server) as load:
        time.sleep(0.5)
        newer = publish_tiny_family(store, scale=2.0)
        wait_for(
            lambda: httpx.get(f"{server.url}/info").json()["model_sha"] == newer.name, 30, "the new version serves"
        )
    assert {reply.status for reply in load.replies} == {200}
    assert all(reply.correct for reply in load.replies)


def test_a_killed_replica_is_restored_and_no_reply_is_wrong(server: Served) -> None:
    before_kill = attributed(server)
    victim = replica_pid(server)
    readings = []
    with steady_load(server) as load:
        time.sleep(1)
        os.kill(victim, signal.SIGKILL)
        killed_at = time.perf_counter()
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            readings.append(attributed(server))
            if any(reply.status == 200 and reply.sent_s > killed_at + 1 for reply in load.replies):
                break
            if _answers(server):
                break
            time.sleep(0.3)
        time.sleep(2)
        readings.append(attributed(server))
    assert _answers(server)
    assert replica_pid(server) != victim
    assert all(reply.correct for reply in load.answered)
    assert readings[0] >= before_kill
    assert readings == sorted(readings), "a joule counter went back"


def _answers(server: Served) -> bool:
    try:
        return ask(server, "my refund").status_code == 200
    except httpx.HTTPError:
        return False


def test_the_books_balance_after_all_that(server: Served) -> None:
    shown = jouleserve(server, "conserve")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "conservation error 0.0" in shown.stdout


def test_nothing_of_the_server_is_left_when_it_stops(server: Served) -> None:
    """Runs last: it stops the server."""
    everything = psutil.Process(server.process.pid).children(recursive=True)
    with steady_load(server):
        time.sleep(1)
        code = server.stop()
    assert code == 0
    _, alive = psutil.wait_procs(everything, timeout=10)
    assert [" ".join(process.cmdline()) for process in alive if process.is_running()] == []


def _store_root(server: Served) -> Path:
    return Path(httpx.get(f"{server.url}/info").json()["store"])
