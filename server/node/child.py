"""Starts the node process as a child, keeps it alive, ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import structlog

from server.node.settings import NodeSettings
from server.settings import Settings
from server.start_error import StartError

log = structlog.get_logger(__name__)

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
RESTART_PAUSE_S = 10.0
LOG_FILE = "node.log"
LOG_BYTES = 1 << 20


def node_settings(settings: Settings) -> NodeSettings:
    """What the server's settings say about its node process; this process is the root of the serving tree.

    Raises StartError, naming the field, if the node process could not run with them.
    """
    server, energy = settings.server, settings.energy
    try:
        return NodeSettings(
            run_dir=server.run_dir,
            host=server.host,
            port=server.metrics_port,
            root_pid=os.getpid(),
            energy_source=energy.source,
            cpu_family=energy.cpu_family,
            calibration_path=energy.calibration and energy.calibration.absolute(),
            pue=energy.pue,
            tick_seconds=energy.tick_s,
        )
    except ValueError as error:
        raise StartError(f"server.{error}" if str(error).startswith("run_dir") else str(error)) from error


def make_room(log_file: Path) -> None:
    """Begin a new log if this one is long, and keep this one as `node.log.1` in place of an older one."""
    with contextlib.suppress(OSError):
        if log_file.stat().st_size > LOG_BYTES:
            log_file.replace(log_file.with_name(f"{log_file.name}.1"))


class NodeChild:
    """The node process of this machine."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is started. Raises StartError if the settings do not allow it."""
        self._settings = node_settings(settings)
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and wait until it listens. Raises StartError, naming its log."""
        command = [sys.executable, "-m", "server.node", *self._settings.to_arguments()]
        log_file = self._settings.run_dir / LOG_FILE
        make_room(log_file)
        with log_file.open("ab") as output:
            # Not asyncio's: `stop` must reach it when the loop is going down.
            self._process = subprocess.Popen(  # noqa: ASYNC220
                command, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(self._settings.host, self._settings.port)
                writer.close()
                return
            await asyncio.sleep(0.1)
        raise StartError(
            f"the node process did not come up on {self._settings.host}:{self._settings.port}; see {log_file}"
        )

    async def keep_alive(self) -> None:
        """Restart it whenever it ends, until cancelled; its totals are on disk."""
        while True:
            await asyncio.sleep(1.0)
            if self._process is not None and self._process.poll() is not None:
                log.error("node_died", code=self._process.returncode)
                try:
                    await self.start()
                except StartError:
                    log.exception("node_not_restarted")
                    await asyncio.sleep(RESTART_PAUSE_S)

    async def stop(self) -> None:
        """Let it settle and persist, then end it. Harmless if it never started."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)
        if self._process.poll() is None:
            self._process.kill()
