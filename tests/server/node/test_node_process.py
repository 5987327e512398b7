"""The real node process over HTTP, with real replica processes that use the real link."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.node import wire
from server.node.figures import Figures
from server.node.metric_table import METRICS
from server.node.service import LOCK_FILE, PORT_FILE
from server.node.state import NodeState
from tests.energy.trees import write_zone

ROOT = Path(__file__).parents[3]
PATIENCE_S = 20.0

# Reads a number from stdin, answers that many requests, says so; leaves at the end of stdin.
REPLICA = """
import asyncio, sys, time
from pathlib import Path
from server.usage import NodeLink, Usage

async def main():
    usage = Usage("intents")
    link = NodeLink(Path(sys.argv[1]), usage)
    await link.start()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        for _ in range(int(line)):
            begin = time.thread_time_ns()
            while time.thread_time_ns() - begin < 2_000_000:
                pass
            usage.request("full", "full", "standard", "ok", time.thread_time_ns() - begin, total_ns=2_000_000)
            usage.batch("full", 1, 10, 10, infer_ns=2_000_000, cpu_ns=2_000_000)
            await asyncio.sleep(0)
        print(link.joules_per_cpu_second, flush=True)
    await link.close()

asyncio.run(main())
"""


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of all samples called `name` that carry these labels (`class` as `class_`); 0 without any."""
    wanted = {(key.rstrip("_"), value) for key, value in labels.items()}
    return sum(value for (found, pairs), value in samples.items() if found == name and wanted <= pairs)


def conservation(base_url: str, since: str = "") -> dict[str, Any]:
    query = f"?since={since}" if since else ""
    with urlopen(f"{base_url}/conservation{query}", timeout=PATIENCE_S) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def figures(base_url: str) -> Figures:
    with urlopen(f"{base_url}/healthz", timeout=PATIENCE_S) as answer:
        return Figures.from_json(json.load(answer))


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError(f"not within {PATIENCE_S} s: {what}")


class Node:
    """A node process that a test started."""

    def __init__(self, run_dir: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "server.node", f"--run-dir={run_dir}", "--port=0", "--source=estimated"]
        command += [f"--root-pid={os.getpid()}", "--tick-seconds=0.1", *arguments]
        self.log = run_dir.with_suffix(".log")
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        self._run_dir = run_dir
        eventually(lambda: self._port() is not None or self.process.poll() is not None, "the node is up")
        assert self.process.poll() is None, self.log.read_text()
        self.url = f"http://127.0.0.1:{self._port()}"

    def _port(self) -> int | None:
        try:
            return int((self._run_dir / PORT_FILE).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def samples(self) -> Samples:
        with urlopen(f"{self.url}/metrics", timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return total(self.samples(), name, **labels)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        (self._run_dir / PORT_FILE).unlink(missing_ok=True)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(PATIENCE_S)


CONTAINED = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""Runs a command as the first process of a PID namespace, as in a container."""


class Replica:
    """A replica process that a test started."""

    def __init__(self, run_dir: Path, *prefix: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", REPLICA, str(run_dir)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self, requests: int) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(requests, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextmanager
def running(run_dir: Path, replicas: int, *arguments: str) -> Iterator[tuple[Node, list[Replica]]]:
    """A node and replicas that it knows; all are stopped at the end."""
    run_dir.mkdir(exist_ok=True)
    node = Node(run_dir, *arguments)
    started = [Replica(run_dir) for _ in range(replicas)]
    try:
        eventually(lambda: node.value("jouleserve_replicas") == replicas, "the replicas are known")
        eventually(lambda: all(r.answer(0) != "None" for r in started), "the replicas were polled")
        yield node, started
    finally:
        for replica in started:
            replica.stop()
        node.stop()


def counters(node: Node) -> Samples:
    ends = ("_total", "_bucket", "_count", "_sum")
    return {key: value for key, value in node.samples().items() if key[0].endswith(ends)}


def assert_nothing_went_back(before: Samples, node: Node) -> None:
    after = counters(node)
    assert {key: (was, after.get(key)) for key, was in before.items() if after.get(key, -1.0) < was} == {}


def lint(node: Node) -> str:
    """What `promtool check metrics` says of a scrape; nothing where there is no promtool."""
    if shutil.which("promtool") is None:
        return ""
    with urlopen(f"{node.url}/metrics", timeout=PATIENCE_S) as scrape:
        done = subprocess.run(["promtool", "check", "metrics"], input=scrape.read(), capture_output=True, timeout=30)
    return (done.stdout + done.stderr).decode()


def answered(node: Node) -> float:
    return node.value("jouleserve_requests_total", variant="full", outcome="ok")


def test_requests_of_two_replicas_get_their_joules_and_the_books_balance(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with running(run_dir, 2) as (node, (one, two)):
        mark = conservation(node.url)["mark"]
        grid = {"grams_per_kwh": 300, "zone": "GB", "provider": "replay", "kind": "live", "age_s": 1}
        (run_dir / "grid.json").write_text(json.dumps({**grid, "dial_point": "full", "policy": "threshold"}))
        eventually(lambda: node.value("jouleserve_carbon_grams_total") > 0, "the intensity is in force")
        assert float(one.answer(100)) > 0
        two.answer(50)
        eventually(lambda: answered(node) == 150, "all requests are counted")
        found = node.samples()
        assert total(found, "jouleserve_attributed_joules_total", model="intents", class_="standard") > 0
        assert total(found, "jouleserve_request_energy_joules_count", model="intents") == 150
        assert total(found, "jouleserve_batch_rows_count") == 150
        assert total(found, "jouleserve_serving_processes") >= 3
        assert total(found, "jouleserve_grid_intensity_grams_per_kwh", zone="GB") == 300
        assert total(found, "jouleserve_carbon_grams_total", scope="attributed") > 0
        assert total(found, "jouleserve_bad_records_total") == 0
        ends = ("_total", "_bucket", "_count", "_sum")
        for name, pairs in found:
            stem = next((name.removesuffix(e) for e in ends if name.endswith(e)), name)
            assert stem in METRICS, f"{name} is not in docs/metrics.md"
            assert {label for label, _ in pairs} - {"le"} == set(METRICS[stem][1]), name
        assert lint(node) == ""
        law = conservation(node.url, since=mark)
        parts = [law[f"{part}_joules"] for part in ("attributed", "idle", "overhead", "other", "pending")]
        assert law["measured_joules"] > 0
        assert sum(parts) == pytest.approx(law["measured_joules"], rel=1e-9)
        assert law["error_ratio"] == 0
        # 150 requests of 2 ms CPU time each.
        rate = total(found, "jouleserve_dynamic_joules_per_cpu_second")
        assert law["attributed_joules"] == pytest.approx(150 * 0.002 * rate, rel=0.5)


def test_a_replica_that_is_killed_or_leaves_takes_nothing_back(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with running(run_dir, 2) as (node, (victim, leaver)):
        victim.answer(20)
        leaver.answer(20)
        eventually(lambda: answered(node) == 40, "all requests are counted")
        before = counters(node)
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait(PATIENCE_S)
        eventually(lambda: node.value("jouleserve_replicas") == 1, "the killed one is gone")
        assert_nothing_went_back(before, node)
        leaver.answer(7)
        leaver.process.communicate()
        eventually(lambda: node.value("jouleserve_replicas") == 0, "the other one left")
        eventually(lambda: answered(node) == 47, "its last requests are counted")
        heir = Replica(run_dir)
        try:
            eventually(lambda: node.value("jouleserve_replicas") == 1, "a new one is known")
            heir.answer(3)
            eventually(lambda: answered(node) == 50, "its requests are counted")
        finally:
            heir.stop()
        assert_nothing_went_back(before, node)
        eventually(lambda: not list(run_dir.glob("r-*.sock")), "the sockets of the dead are taken away")


def test_a_replica_in_a_container_is_seen_by_a_node_outside_it(tmp_path: Path) -> None:
    if subprocess.run([*CONTAINED, "true"], capture_output=True, timeout=PATIENCE_S, check=False).returncode:
        pytest.skip("this machine lets nobody make PID namespaces")
    with running(tmp_path / "run", 0, "--root-pid=0") as (node, _):
        replica = Replica(tmp_path / "run", *CONTAINED)
        try:
            eventually(lambda: node.value("jouleserve_replicas") == 1, "the replica is known")
            eventually(lambda: node.value("jouleserve_serving_processes") == 2, "its process is found: it and the node")
            eventually(lambda: replica.answer(20) != "None", "the replica was polled")
            eventually(lambda: node.value("jouleserve_attributed_joules_total") > 0, "its requests get their joules")
        finally:
            replica.stop()
        eventually(lambda: node.value("jouleserve_replicas") == 0, "it is missed")


def test_a_stopped_replica_is_late_and_its_requests_are_counted_once_when_it_wakes(tmp_path: Path) -> None:
    with running(tmp_path / "run", 1) as (node, (replica,)):
        replica.answer(10)
        eventually(lambda: answered(node) == 10, "all requests are counted")
        replica.process.send_signal(signal.SIGSTOP)
        eventually(lambda: node.value("jouleserve_late_records_total") >= 2, "its records are late")
        assert conservation(node.url)["error_ratio"] == 0
        replica.process.send_signal(signal.SIGCONT)
        replica.answer(10)
        eventually(lambda: answered(node) == 20, "all requests are counted once")


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_node_that_is_restarted_goes_on_where_it_was(tmp_path: Path, how: str) -> None:
    run_dir = tmp_path / "run"
    with running(run_dir, 1, "--persist-seconds=3600") as (node, (replica,)):
        replica.answer(30)
        eventually(lambda: answered(node) == 30, "all requests are counted")
        before, told = counters(node), figures(node.url)
        assert told.node
        assert told.standard_texts == 30
        if how == "stop":
            assert node.stop() == 0
        else:
            node.kill()
        replica.answer(12)
        heir = Node(run_dir)
        try:
            eventually(lambda: heir.value("jouleserve_replicas") == 1, "the replica found the new node")
            eventually(lambda: answered(heir) == 42, "each request is counted once")
            assert_nothing_went_back(before, heir)
            assert conservation(heir.url)["error_ratio"] == 0
            now = figures(heir.url)
            assert (now.node, now.standard_texts) == (told.node, 42)
        finally:
            assert heir.stop() == 0


def test_what_nobody_asks_for_is_settled_and_kept_all_the_same(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with running(run_dir, 1, "--persist-seconds=0.1") as (_, (replica,)):
        replica.answer(6)

        def kept() -> bool:
            totals = NodeState.decode((run_dir / "node.json").read_bytes()).totals
            return sum(totals.requests.values()) == 6

        eventually(kept, "the requests are in the file")


def test_what_is_shown_of_a_window_that_waited_for_its_answer_outlives_a_kill(tmp_path: Path) -> None:
    """It was left open by one look, and settled by the next with no tick in between."""
    run_dir = tmp_path / "run"
    with running(run_dir, 1, "--persist-seconds=3600", "--tick-seconds=1.5") as (node, (replica,)):
        replica.answer(10)
        eventually(lambda: answered(node) == 10, "all requests are counted")
        replica.answer(5)
        replica.process.send_signal(signal.SIGSTOP)
        eventually(lambda: conservation(node.url)["pending_joules"] > 0, "a window is open")
        replica.process.send_signal(signal.SIGCONT)
        eventually(lambda: answered(node) == 15, "the window is settled")
        before = counters(node)
        node.kill()
        heir = Node(run_dir)
        try:
            assert_nothing_went_back(before, heir)
        finally:
            assert heir.stop() == 0


def test_joules_of_a_window_that_is_open_when_the_node_is_killed_stay_in_the_books(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with running(run_dir, 1, "--persist-seconds=3600", "--tick-seconds=0.5") as (node, (replica,)):
        replica.process.send_signal(signal.SIGSTOP)
        eventually(lambda: conservation(node.url)["pending_joules"] > 0, "a window is open")
        node.kill()
        heir = Node(run_dir)
        try:
            assert heir.value("jouleserve_unattributed_joules_total", reason="lost_at_restart") > 0
            assert conservation(heir.url)["error_ratio"] == 0
        finally:
            assert heir.stop() == 0


def test_a_run_folder_too_long_for_a_socket_works_like_any_other(tmp_path: Path) -> None:
    run_dir = tmp_path / ("d" * 100)
    with running(run_dir, 1) as (node, (replica,)):
        replica.answer(5)
        eventually(lambda: answered(node) == 5, "all requests are counted")
        assert (wire.socket_dir(run_dir) / wire.NODE_SOCKET).is_socket()
        replica.process.communicate()
    assert not wire.socket_dir(run_dir).exists()


def test_sockets_that_dead_replicas_left_are_taken_away_at_start(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(run_dir / "r-dead.sock"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as living:
        living.bind(str(run_dir / "r-living.sock"))
        with running(run_dir, 0):
            assert [path.name for path in run_dir.glob("r-*.sock")] == ["r-living.sock"]


def test_a_second_node_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with running(run_dir, 0) as (node, _):
        command = [sys.executable, "-m", "server.node", f"--run-dir={run_dir}", "--port=0"]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
        assert second.returncode == 2
        assert f"pid {node.process.pid}" in second.stderr
        assert node.value("jouleserve_replicas") == 0
    assert (run_dir / LOCK_FILE).exists()


def test_a_second_node_on_the_same_machine_says_that_both_count_its_idling(tmp_path: Path) -> None:
    with running(tmp_path / "one", 0) as (first, _), running(tmp_path / "two", 0) as (second, _):
        assert f"pid {first.process.pid} meters this machine, too" in second.log.read_text()
        assert f"pid {second.process.pid} meters" not in first.log.read_text()


def test_it_leaves_when_the_driver_and_all_replicas_are_gone(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as driver:
        node = Node(run_dir, f"--root-pid={driver.pid}")
        try:
            driver.communicate(b"\n")
            assert node.process.wait(PATIENCE_S) == 0
        finally:
            node.stop()
    assert not (run_dir / PORT_FILE).exists()
    assert (run_dir / "node.json").exists()


@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ("--pue=0.5", "pue"),
        ("--port=70000", "port"),
        ("--tick-seconds=0", "tick_seconds"),
        ("--cpu-family=z80", "cpu_family"),
        ("--source=rapl", "powercap"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_starts(tmp_path: Path, argument: str, field: str) -> None:
    command = [sys.executable, "-m", "server.node", f"--run-dir={tmp_path / 'run'}", "--port=0", argument]
    command.append(f"--powercap-root={tmp_path / 'no-powercap'}")
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert found.returncode == 2
    assert field in found.stderr
    assert "Traceback" not in found.stderr


def test_only_its_paths_are_served_and_only_to_get(tmp_path: Path) -> None:
    with running(tmp_path / "run", 0) as (node, _):
        with urlopen(f"{node.url}/healthz", timeout=PATIENCE_S) as answer:
            assert json.load(answer)["sources"] == ["estimated"]
        refusals = [("/", None, 404), ("/metrics", b"x", 405)]
        marks = (
            "x",
            "9" * 5000,
            ".".join(["9" * 400] * 6),
            "1.0.0.0.0." + "9" * 20,
            "99999999999.0.0.0.0.0",
            "1.-1.0.0.0.0",
        )
        refusals += [(f"/conservation?since={mark}", None, 400) for mark in marks]
        for path, data, status in refusals:
            with pytest.raises(HTTPError) as refused:
                urlopen(node.url + path, data=data, timeout=PATIENCE_S)
            assert refused.value.code == status
            refused.value.close()


def test_a_calibrated_machine_is_metered_by_its_own_curve(tmp_path: Path) -> None:
    curve = tmp_path / "curve.json"
    points = [{"load": load, "watts": watts} for load, watts in ((0, 40), (0.1, 50), (1, 90))]
    described = {"reference": "plug", "reference_uncertainty": 0.0, "date": "2026-11-28"}
    curve.write_text(json.dumps({"version": 1, "points": points, **described}))
    with running(tmp_path / "run", 0, f"--calibration={curve}") as (node, _):
        eventually(lambda: node.value("jouleserve_energy_joules_total", domain="machine") > 0, "joules are counted")
        assert node.value("jouleserve_energy_relative_uncertainty_ratio", source="estimated") == 0.1


def test_a_counter_that_turns_absurd_is_marked_as_missing_while_serving_goes_on(tmp_path: Path) -> None:
    counter = write_zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 10**9)
    arguments = (f"--powercap-root={tmp_path / 'powercap'}", "--source=auto", "--tick-seconds=0.4")
    with running(tmp_path / "run", 1, *arguments) as (node, (replica,)):
        energy_uj = [10**9]

        def drawn(joules: float) -> None:
            energy_uj[0] += round(joules * 1e6)
            counter.write_text(f"{energy_uj[0]}\n")

        def missing() -> bool:
            return node.value("jouleserve_energy_domain_missing", source="rapl") == 1

        def drawing() -> bool:
            drawn(20)
            return not missing() and node.value("jouleserve_energy_joules_total", source="rapl") > 0

        eventually(drawing, "the counter is metered")
        for content in ("-5\n", "nonsense\n", f"{energy_uj[0] + 10**13}\n", None):
            if content is not None:
                counter.write_text(content)
            else:
                counter.unlink()
            before = counters(node)
            eventually(missing, f"{content!r} is marked as missing")
            assert replica.answer(3) != ""
            assert_nothing_went_back(before, node)
            assert node.value("jouleserve_energy_joules_total", source="rapl") < 10**6
            counter.write_text(f"{energy_uj[0]}\n")
            eventually(drawing, "the counter came back")
        eventually(missing, "a counter that stands still is marked as missing")
        assert node.value("jouleserve_energy_conservation_error_ratio") == 0
