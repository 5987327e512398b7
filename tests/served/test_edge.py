"""Edge mode: the same answers, books and live tuning in one process, without Ray."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from loadtest.http import HTTP
from loadtest.served import serve
from models.store import Store
from tests.support.tiny_family import publish_tiny_family

pytestmark = pytest.mark.served


def test_one_process_answers_accounts_is_tuned_and_stops(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    publish_tiny_family(store)
    place = {"model.store": store.root, "model.family": "tiny"}
    with serve(tmp_path, place, edge=True) as served:
        process = psutil.Process(served.process.pid)
        reply = HTTP.post(f"{served.url}/predict", json={"inputs": "where is my parcel"})
        assert reply.json()[0]["label"] == "parcel"
        assert process.children() == []
        mapped = {Path(mapping.path).name for mapping in process.memory_maps()}
        assert not [name for name in mapped if "raylet" in name]
        tune = [sys.executable, "-m", "server.cli", "tune", "batching.max_rows=3"]
        for key, value in {**place, "server.run_dir": tmp_path / "run"}.items():
            tune += ["--set", f"{key}={value}"]
        tuned = subprocess.run(tune, capture_output=True, text=True, timeout=60)
        assert tuned.returncode == 0, tuned.stderr
        deadline = time.monotonic() + 20
        while HTTP.get(f"{served.url}/info").json()["max_batch_requests"] != 3:
            assert time.monotonic() < deadline, "the change was not taken"
            time.sleep(0.1)
        books = HTTP.get(f"{served.metrics_url}/conservation").json()
        assert books["attributed_joules"] > 0
        assert books["error_ratio"] <= 0.001
    assert served.process.returncode == 0


def test_a_node_process_that_is_run_apart_is_refused_in_edge_mode(tmp_path: Path) -> None:
    place = ["--set", f"model.store={tmp_path / 'store'}", "--set", "model.family=tiny"]
    publish_tiny_family(Store(tmp_path / "store"))
    command = [sys.executable, "-m", "server.cli", "up", "--edge", *place, "--set", f"energy.node_dir={tmp_path}"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "energy.node_dir: edge mode meters in its own process" in refused.stderr
