"""The meter of a pod that stops is the last to go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.served import free_port
from server.node.outlast import main
from tests.server.node.test_node_process import PATIENCE_S, ROOT, running


def arguments(url: str, within_s: float) -> list[str]:
    return [f"--within={within_s}", f"--port={url.rsplit(':', 1)[1]}"]


def test_it_waits_for_the_replicas_that_report_and_no_longer(tmp_path: Path) -> None:
    with running(tmp_path / "run", 1) as (node, (replica,)):
        assert main(arguments(node.url, 0.2)) == 1, "a replica is there"
        waiting = subprocess.Popen([sys.executable, "-m", "server.node.outlast", *arguments(node.url, 60)], cwd=ROOT)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        replica.stop()
        assert waiting.wait(PATIENCE_S) == 0


def test_where_no_node_process_answers_there_is_nothing_to_wait_for() -> None:
    assert main(arguments(f"http://127.0.0.1:{free_port()}", 60)) == 0
