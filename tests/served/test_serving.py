"""What a user, an operator and an accident may do to a real server: Ray Serve, HAProxy and the node process."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from loadtest.client import Question, Run, closed_loop
from loadtest.demo_tables import read_metrics
from loadtest.http import HTTP
from loadtest.served import Served, serve
from models.store import Store
from tests.served.conftest import DWELL_S, POLL_S
from tests.served.sockets import beyond_loopback, listeners
from tests.support.tiny_family import publish_tiny_family

pytestmark = pytest.mark.served

PUSH_S = 10.0  # what Serve may take to hand new orders to a replica on a busy machine
QUESTIONS = [Question(f"refund w{n % 50} w{n // 50}", label="refund") for n in range(1000)]


def ask(server: Served, text: str, quality: str = "standard") -> httpx.Response:
    return HTTP.post(f"{server.url}/predict", json={"inputs": text}, headers={"X-Quality": quality}, timeout=10)


def jouleserve(server: Served, *arguments: str) -> subprocess.CompletedProcess[str]:
    run_dir = server.log.parent / "run"
    port = server.metrics_url.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "server.cli", *arguments]
    command += ["--set", f"server.run_dir={run_dir}", "--set", f"server.metrics_port={port}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def info(server: Served) -> httpx.Response:
    return HTTP.get(f"{server.url}/info", timeout=30)


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
    pid: int = info(server).json()["pid"]
    return pid


def attributed(server: Served) -> float:
    return read_metrics(server.metrics_url).total("jouleserve_attributed_joules_total")


def test_a_job_is_computed_by_a_replica_and_counted(server: Served) -> None:
    body = {"inputs": [["where is my parcel"], ["my card"]], "within_s": 600}
    made = HTTP.post(f"{server.url}/jobs", json=body, headers={"Idempotency-Key": "one"}, timeout=20)
    assert made.status_code == 201
    place = f"{server.url}{made.headers['location']}"
    wait_for(lambda: HTTP.get(place, timeout=20).json()["state"] == "done", 30, "the job is done")
    results = HTTP.get(f"{place}/results", timeout=20).json()["results"]
    assert [one["predictions"][0]["label"] for one in results] == ["parcel", "card"]
    wait_for(
        lambda: read_metrics(server.metrics_url).total("jouleserve_jobs_texts_total") == 2, 20, "the texts are counted"
    )
    again = HTTP.post(f"{server.url}/jobs", json=body, headers={"Idempotency-Key": "one"}, timeout=20)
    assert (again.status_code, again.json()["id"]) == (200, made.json()["id"])


def test_a_dirty_hour_moves_standard_requests_for_the_dwell_time_and_no_strict_one(server: Served) -> None:
    """The recording alternates; a dirty hour (5 s) is shorter than the dwell (8 s), so that the dwell shows."""
    grid_file = server.log.parent / "run" / "grid.json"
    wait_for(grid_file.exists, 10, "the first look at the grid")
    seen: list[tuple[float, float, dict[str, httpx.Response]]] = []
    started = time.monotonic()
    while time.monotonic() - started < 240 and not _went_and_came_back(seen):
        grams = json.loads(grid_file.read_text())["grams_per_kwh"]
        replies = {quality: ask(server, "my refund", quality) for quality in ("strict", "standard", "eco")}
        seen.append((time.monotonic(), grams or 0.0, replies))
        time.sleep(0.1)
    assert {_point(replies["strict"]) for _, _, replies in seen} == {"full"}
    assert {_point(replies["eco"]) for _, _, replies in seen} == {"nano"}
    assert {replies["strict"].headers["x-jouleserve-reason"] for _, _, replies in seen} == {"strict"}
    assert _went_and_came_back(seen), "standard requests did not move and return"
    points = [(at, grams, _point(replies["standard"])) for at, grams, replies in seen]
    moved = next(at for at, _, point in points if point == "lite")
    if points[0][1] < 300:  # it was clean when it began: the move to the cheaper point was seen from its start
        dirty = next(at for at, grams, _ in points if grams > 350)
        assert moved - dirty <= 2 * POLL_S + PUSH_S
    switches = _switch_times(server)
    assert len(switches) >= 2
    assert all(later - earlier >= DWELL_S - 1 for earlier, later in pairwise(switches))
    reasons = {replies["standard"].headers["x-jouleserve-reason"].split(":")[0] for _, _, replies in seen}
    assert {"grid-clean", "grid-dirty"} & reasons


def _switch_times(server: Served) -> list[float]:
    """When the controller turned the dial, by its log (whole seconds)."""
    lines = re.findall(r"^(\S+ \S+) .*dial_decided.*switched=True", server.log.read_text(), re.MULTILINE)
    return [datetime.fromisoformat(stamp).timestamp() for stamp in lines]


def _went_and_came_back(seen: list[tuple[float, float, dict[str, httpx.Response]]]) -> bool:
    points = [_point(replies["standard"]) for _, _, replies in seen]
    first = points.index("lite") if "lite" in points else len(points)
    return "full" in points[first:]


def _point(reply: httpx.Response) -> str:
    assert reply.status_code == 200
    return reply.headers["x-jouleserve-point"]


def test_an_answer_names_its_joules_and_their_source(server: Served) -> None:
    reply = ask(server, "where is my parcel")
    assert reply.json()[0]["label"] == "parcel"
    assert float(reply.headers["x-jouleserve-joules"]) > 0
    assert reply.headers["x-jouleserve-joules-source"] == "estimated"


def test_the_console_is_served_by_a_replica_with_the_figures_of_its_node(server: Served) -> None:
    page = HTTP.get(f"{server.url}/console", timeout=30)
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    wait_for(lambda: bool((_console(server)["grid"] or {}).get("changes")), 10, "the first decision is told")
    told = _console(server)
    assert "jouleserve_energy_joules_total{" in told["metrics"]
    assert [point["name"] for point in told["points"]] == ["full", "lite", "nano"]


def _console(server: Served) -> dict[str, Any]:
    told: dict[str, Any] = HTTP.get(f"{server.url}/console/data", timeout=10).json()
    return told


def test_settings_change_under_load_without_a_lost_request(server: Served) -> None:
    pid = replica_pid(server)
    with steady_load(server) as load:
        time.sleep(1)
        tuned = jouleserve(server, "tune", "batching.max_rows=3", "--set", "model.family=tiny", "--set",
                           f"model.store={_store_root(server)}")  # fmt: skip
        assert tuned.returncode == 0, tuned.stderr
        wait_for(
            lambda: info(server).json()["max_batch_requests"] == 3,
            20,
            "the replica takes the change",
        )
    assert replica_pid(server) == pid
    assert len(load.replies) > 100
    assert {reply.status for reply in load.replies} == {200}


def test_a_wrong_setting_is_refused_with_its_name_and_changes_nothing(server: Served) -> None:
    before = info(server).json()["tunables"]
    refused = jouleserve(server, "tune", "shaping.clean_below_grams_per_kwh=900", "--set", "model.family=tiny", "--set",
                         f"model.store={_store_root(server)}")  # fmt: skip
    assert refused.returncode == 2
    assert "clean_below_grams_per_kwh" in refused.stderr
    time.sleep(2.5)
    assert info(server).json()["tunables"] == before


def test_a_corrupt_new_version_is_refused_and_the_old_one_serves_on(
    server: Served, store: Store, tmp_path: Path
) -> None:
    before = info(server).json()["model_sha"]
    corrupt = publish_tiny_family(Store(tmp_path / "elsewhere"), scale=3.0)
    model = corrupt.file(corrupt.manifest.variants[0].model)
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    name = corrupt.name.replace("0001-", "0002-")
    shutil.copytree(corrupt.path, store.root / "tiny" / name)
    store.set_current("tiny", name)
    wait_for(lambda: "version_refused" in server.log.read_text(), 20, "the refusal is logged")
    assert name in server.log.read_text()
    assert ask(server, "my refund").headers["x-jouleserve-version"] == before


def test_a_sound_new_version_takes_over_under_load_without_a_lost_request(server: Served, store: Store) -> None:
    with steady_load(server) as load:
        time.sleep(0.5)
        newer = publish_tiny_family(store, scale=2.0)
        wait_for(lambda: info(server).json()["model_sha"] == newer.name, 30, "the new version serves")
    assert not re.search("orders_not_told|not_pushed", server.log.read_text())
    assert {reply.status for reply in load.replies} == {200}
    assert all(reply.correct for reply in load.replies)


def test_a_killed_replica_is_restored_and_no_reply_is_wrong(server: Served) -> None:
    before_kill = attributed(server)
    victim = replica_pid(server)
    readings = []
    with steady_load(server) as load:
        time.sleep(1)
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not _answers(server):
            readings.append(attributed(server))
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


def test_servers_on_one_machine_listen_on_loopback_alone_and_do_not_collide(server: Served, tmp_path: Path) -> None:
    """Two behind Ray Serve and one in edge mode at once: every socket of every process of theirs is looked at, and
    each answers with its own version. One of them stops, and the others do not notice."""
    with serve(tmp_path / "edge", place(tmp_path / "e", 3.0), edge=True) as edge:
        with serve(tmp_path / "two", place(tmp_path / "t", 5.0)) as two:
            for served in (edge, server, two):
                pid = served.process.pid
                assert len(listeners(pid)) >= (2 if served is edge else 10), "the look at the sockets sees too few"
                assert beyond_loopback(pid) == set()
            versions = {version_and_label(served) for served in (edge, server, two)}
            assert len(versions) == 3
            pids = [{child.pid for child in _tree(served)} for served in (edge, server, two)]
            assert sum(map(len, pids)) == len(set.union(*pids))
            second = version_and_label(two)
        assert two.process.returncode == 0
        assert {version_and_label(edge), version_and_label(server), second} == versions
    assert edge.process.returncode == 0


def place(folder: Path, scale: float) -> dict[str, object]:
    """A store with a version of its own."""
    store = Store(folder / "store")
    publish_tiny_family(store, scale=scale)
    return {"model.store": store.root, "model.family": "tiny", "cache.enabled": "false"}


def version_and_label(served: Served) -> tuple[str, str]:
    reply = ask(served, "my refund", "strict")
    assert reply.status_code == 200
    return reply.headers["x-jouleserve-version"], reply.json()[0]["label"]


def _tree(served: Served) -> list[psutil.Process]:
    root = psutil.Process(served.process.pid)
    return [root, *root.children(recursive=True)]


def test_the_books_balance_after_all_that(server: Served) -> None:
    shown = jouleserve(server, "conserve")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "conservation error 0.0" in shown.stdout


def test_nothing_of_the_server_is_left_when_it_stops(server: Served) -> None:
    """Runs last: it stops the server."""
    everything = psutil.Process(server.process.pid).children(recursive=True)
    with steady_load(server) as load:
        time.sleep(1)
        code = server.stop()
    assert code == 0
    assert all(reply.correct for reply in load.answered)
    # What was accepted is answered: afterwards nobody listens any more, which is no status at all.
    assert {reply.status for reply in load.replies} <= {200, 0, 503}
    _, alive = psutil.wait_procs(everything, timeout=10)
    assert [" ".join(process.cmdline()) for process in alive if process.is_running()] == []


def _store_root(server: Served) -> Path:
    return Path(info(server).json()["store"])
