"""How a peer's process is started, watched and stopped."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import psutil

from loadtest.peers.contestant import DidNotStart, Running, Wire
from loadtest.peers.model import MODEL_FILE, PORT, ModelFiles
from loadtest.served import free_port
from loadtest.tree import read_tree

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.05


@contextlib.contextmanager
def run_peer(
    name: str, command: Sequence[str], environment: Mapping[str, str], wire: Wire, files: ModelFiles, folder: Path
) -> Iterator[Running]:
    """Start, wait until it answers, stop at the end. Raises DidNotStart with the end of its log.

    It runs in a folder of its own below `folder`, with `environment` beside ours.
    """
    home = (folder / name.replace(" ", "-").replace("@", "")).absolute()
    home.mkdir(parents=True, exist_ok=True)
    files.save(home / "model.json")
    port = free_port()
    whole_environment = os.environ | {
        "PYTHONPATH": str(Path.cwd()),
        "TOKENIZERS_PARALLELISM": "false",
        MODEL_FILE: str(home / "model.json"),
        PORT: str(port),
        **environment,
    }
    log = home / "log.txt"
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=home, env=whole_environment, start_new_session=True
        )
    try:
        wait_until_it_answers(process, wire, port, log)
        yield running_of(process.pid, port, wire, time.perf_counter() - started)
    finally:
        stop_tree(process)


def running_of(pid: int, port: int, wire: Wire, ready_s: float) -> Running:
    """What has just become ready, with the CPU time that took."""
    spent = sum(read_tree(pid).cpu_seconds.values())
    return Running(pid, port, wire, ready_s, spent)


def wait_until_it_answers(process: subprocess.Popen[bytes], wire: Wire, port: int, log: Path) -> None:
    """Ask until the answer is 200. Raises DidNotStart."""
    deadline = time.monotonic() + START_TIMEOUT_S
    headers = {"content-type": "application/json", **wire.headers}
    said = "nothing"
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            reply = httpx.post(
                f"http://127.0.0.1:{port}{wire.path}", content=wire.body("are you there"), headers=headers, timeout=10
            )
            if reply.status_code == 200:
                return
            said = f"{reply.status_code} {reply.text[:200]}"
        time.sleep(POLL_S)
    tail = log.read_text(errors="replace").splitlines()[-15:]
    raise DidNotStart(
        f"it did not come up (it answered {said}); its last words: " + " | ".join(line.strip() for line in tail)
    )


def stop_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the first process, then an end to whatever of its tree is still there."""
    tree: Sequence[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        tree = [*root.children(recursive=True), root]
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    _, left = psutil.wait_procs(tree, timeout=2)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(left, timeout=10)
    process.wait(10)
