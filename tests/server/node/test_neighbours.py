from __future__ import annotations

import os
from pathlib import Path

from server.node.neighbours import neighbours


def runs(proc: Path, pid: int, *words: str) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))


def test_node_processes_are_told_by_their_command_and_this_one_is_none_of_the_others(tmp_path: Path) -> None:
    runs(tmp_path, 20, "python", "-m", "server.node", "--run-dir=/var/two")
    runs(tmp_path, 7, "/usr/bin/python3", "-m", "server.node")
    runs(tmp_path, os.getpid(), "python", "-m", "server.node")
    runs(tmp_path, 8, "python", "-m", "server.node.outlast", "--within=3")
    runs(tmp_path, 9, "grep", "server.node")
    (tmp_path / "10").mkdir()
    (tmp_path / "self").mkdir()
    assert neighbours(tmp_path) == [7, 20]
