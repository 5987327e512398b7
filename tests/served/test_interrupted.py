"""A load test that is ended by SIGTERM, as by a `timeout`, stops the server that it started."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from models.store import Store
from tests.support.tiny_family import publish_tiny_family

pytestmark = pytest.mark.served

LOADING = """
import sys, time
from pathlib import Path
from loadtest.served import serve
with serve(Path(sys.argv[1]), {"model.store": sys.argv[2], "model.family": "tiny"}, edge=True) as served:
    print(served.process.pid, flush=True)
    time.sleep(600)
"""


def test_the_server_ends_with_who_started_it(tmp_path: Path) -> None:
    publish_tiny_family(Store(tmp_path / "store"))
    command = [sys.executable, "-c", LOADING, str(tmp_path), str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        server = psutil.Process(int(load.stdout.readline()))
        load.terminate()
        deadline = time.monotonic() + 60
        while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the server is still there"
            time.sleep(0.05)
