"""A real server, started as a user would, for benchmarks, the demo and tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from loadtest.http import HTTP

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 120.0


class Served:
    """A running `jouleserve up`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, metrics_port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.metrics_url = f"http://127.0.0.1:{metrics_port}"
        self.log = log

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until `/health` says so. Raises RuntimeError with the end of the log if it does not come up."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(httpx.HTTPError):
                if HTTP.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"the server did not come up; the end of {self.log}:\n{self.tail()}")

    def tail(self, lines: int = 30) -> str:
        """The last lines of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> int:
        """SIGTERM, then wait; SIGKILL for the group if it does not end. Returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(10)
        return self.process.returncode


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it SIGTERM, which a `timeout` sends, ends the program the way Ctrl-C does: what it started is stopped,
    what it holds still goes on. Signals reach the main thread alone; in another nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serve(
    folder: Path,
    settings: Mapping[str, object],
    *,
    port: int | None = None,
    metrics_port: int | None = None,
    edge: bool = False,
) -> Iterator[Served]:
    """Start a server with its files in `folder`, wait until it answers, stop it at the end, also that by SIGTERM."""
    folder.mkdir(parents=True, exist_ok=True)
    port, metrics_port = port or free_port(), metrics_port or free_port()
    everything = {"server.port": port, "server.metrics_port": metrics_port, "server.run_dir": folder / "run"}
    everything.update(settings)
    command = [sys.executable, "-m", "server.cli", "up", *(["--edge"] if edge else [])]
    for key, value in everything.items():
        command += ["--set", f"{key}={value}"]
    log = folder / "server.log"
    with interruptible(), log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        served = Served(process, port, metrics_port, log)
        try:
            served.wait_ready()
            yield served
        finally:
            served.stop()
