"""A peer is a process tree that is started, asked until it answers, and stopped with all its children."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from loadtest.bench.workloads import model_files
from loadtest.peers import bento, lit_serve, plain_torch, ray_serve, torch_serve
from loadtest.peers.contestant import DidNotStart, Wire, tei_body
from loadtest.peers.model import Encoder, ModelFiles, OnnxModel
from loadtest.peers.peer import Peer
from loadtest.peers.torch_serve import configuration
from loadtest.wire_client import run_closed_loop
from models.store import Version

FILES = ModelFiles("a.onnx", "t.json", ("x", "y"), 0, 64, Encoder(10, 20, 384, 1536, 6))
SERVER = """
import json, os, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from loadtest.peers.model import ModelFiles, port_from_environment
from loadtest.peers.peer import Peer
labels = ModelFiles.from_environment().labels
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({"label": labels[0]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
HTTPServer(("127.0.0.1", port_from_environment()), Handler).serve_forever()
"""


def peer(code: str) -> Peer:
    return Peer("X @y", ("json",), ("-c", code), Wire("/predict", tei_body), python=Path(sys.executable))


def test_a_peer_is_asked_when_it_answers_and_leaves_no_process(tmp_path: Path) -> None:
    with peer(SERVER).running(FILES, tmp_path) as running:
        tree = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
        tally = run_closed_loop("127.0.0.1", running.port, [running.request("hello")], 1, timeout_s=20)
        assert len(tally.latencies_s) == 1
        assert running.ready_s > 0
        assert running.start_cpu_seconds > 0
    assert len(tree) == 2
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in tree)


def test_a_peer_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(DidNotStart, match="no such model"),
        peer("raise SystemExit('no such model')").running(FILES, tmp_path),
    ):
        pass


def test_a_peer_without_its_packages_or_programs_is_absent() -> None:
    python = Path(sys.executable)
    wire = Wire("/predict", tei_body)
    assert Peer("X", ("json",), (), wire, python=python).absent() is None
    assert "no_such_package" in str(Peer("X", ("no_such_package",), (), wire, python=python).absent())
    assert "no-such-program" in str(Peer("X", ("json",), (), wire, ("no-such-program",), python=python).absent())


def test_the_peers_have_names_of_their_own_and_say_their_settings() -> None:
    modules = (plain_torch, ray_serve, lit_serve, bento, torch_serve)
    assert len({module.PEER.name for module in modules}) == len(modules)
    assert all("Settings:" in str(module.__doc__) for module in modules)


def test_torchserve_listens_on_loopback_only() -> None:
    addresses = [line for line in configuration(1, (2, 3)).splitlines() if "_address=" in line]
    assert len(addresses) == 3
    assert all("=http://127.0.0.1:" in line for line in addresses)


def test_the_peers_model_answers_in_order_with_the_best_label(tiny_version: Version) -> None:
    model = OnnxModel(model_files(tiny_version, "full"))
    answers = model.predict(["my refund", "card", "where is my parcel please"])
    assert [one["label"] for one in answers] == ["refund", "card", "parcel"]
    assert all(1 / 3 < one["score"] <= 1 for one in answers)
