"""The node process's settings, from the command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from energy.sources import PREFERENCES
from server.node.wire import socket_dir


@dataclass(frozen=True)
class NodeSettings:
    """What the node process needs to know."""

    run_dir: Path
    """Folder of the running server: lock, totals, grid.json, and sockets (if its path is short enough for them, see
    `wire.socket_dir`).
    """
    host: str = "127.0.0.1"
    """Address of /metrics."""
    port: int = 9400
    """Port of /metrics; 0 takes a free one, written to `node.port` in the run folder."""
    root_pid: int = 0
    """The driver; its descendants are the serving tree. 0 for none: then replicas' own processes are the tree."""
    energy_source: str = "auto"
    """auto, rapl, nvml or estimated (see `energy.sources`); GPUs are metered wherever NVML is, but for `estimated`."""
    cpu_family: str | None = None
    """Row of the estimate's coefficients; None detects the CPU."""
    calibration_path: Path | None = None
    """The estimate's power curve, as `jouleserve calibrate` wrote it; None takes the CPU family's coefficients."""
    pue: float = 1.0
    """Power usage effectiveness: grams count every joule this many times; joules stay those of the machine."""
    tick_seconds: float = 1.0
    """Shorter gives finer windows and costs CPU time."""
    persist_seconds: float = 10.0
    """Totals are also persisted before every scrape, so that what was shown is never taken back."""
    proc_root: Path = Path("/proc")
    powercap_root: Path = Path("/sys/class/powercap")

    def __post_init__(self) -> None:
        """Check. Raises ValueError naming the field and the remedy."""
        socket_dir(self.run_dir)
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: {self.port}; give 0 to 65535")
        if self.root_pid < 0:
            raise ValueError(f"root_pid: {self.root_pid}; give a process id, or 0 for none")
        if self.energy_source not in PREFERENCES:
            raise ValueError(f"energy_source: {self.energy_source!r}; give one of {', '.join(PREFERENCES)}")
        if not 1 <= self.pue <= 5:
            raise ValueError(f"pue: {self.pue}; give 1 (no cooling counted) to 5")
        if not 0.05 <= self.tick_seconds <= 60:
            raise ValueError(f"tick_seconds: {self.tick_seconds}; give 0.05 to 60")
        if not 0.1 <= self.persist_seconds <= 3600:
            raise ValueError(f"persist_seconds: {self.persist_seconds}; give 0.1 to 3600")

    @property
    def state_file(self) -> Path:
        """The file that totals are kept in: in the run folder, whose lock sees to it that one process writes it."""
        return self.run_dir / "node.json"

    def to_arguments(self) -> list[str]:
        """The command line that `from_arguments` turns back; for whoever starts the process."""
        arguments = [f"--run-dir={self.run_dir}", f"--host={self.host}", f"--port={self.port}"]
        arguments += [f"--root-pid={self.root_pid}", f"--source={self.energy_source}"]
        arguments += [f"--tick-seconds={self.tick_seconds}", f"--persist-seconds={self.persist_seconds}"]
        arguments += [f"--proc-root={self.proc_root}", f"--powercap-root={self.powercap_root}"]
        arguments.append(f"--pue={self.pue}")
        if self.cpu_family is not None:
            arguments.append(f"--cpu-family={self.cpu_family}")
        if self.calibration_path is not None:
            arguments.append(f"--calibration={self.calibration_path}")
        return arguments

    @classmethod
    def from_arguments(cls, arguments: Sequence[str] | None = None) -> NodeSettings:
        """Parse a command line; exits with code 2 and a message if it is wrong."""
        parser = argparse.ArgumentParser(
            prog="python -m server.node", description="Owns the node's energy meters and serves /metrics."
        )
        parser.add_argument("--run-dir", type=Path, required=True)
        parser.add_argument("--host", default=cls.host)
        parser.add_argument("--port", type=int, default=cls.port)
        parser.add_argument("--root-pid", type=int, default=os.getppid())
        parser.add_argument("--source", default=cls.energy_source, choices=PREFERENCES)
        parser.add_argument("--cpu-family", default=None)
        parser.add_argument("--calibration", type=Path, default=None)
        parser.add_argument("--pue", type=float, default=cls.pue)
        parser.add_argument("--tick-seconds", type=float, default=cls.tick_seconds)
        parser.add_argument("--persist-seconds", type=float, default=cls.persist_seconds)
        parser.add_argument("--proc-root", type=Path, default=cls.proc_root)
        parser.add_argument("--powercap-root", type=Path, default=cls.powercap_root)
        given = parser.parse_args(arguments)
        try:
            return cls(
                run_dir=given.run_dir,
                host=given.host,
                port=given.port,
                root_pid=given.root_pid,
                energy_source=given.source,
                cpu_family=given.cpu_family,
                calibration_path=given.calibration,
                pue=given.pue,
                tick_seconds=given.tick_seconds,
                persist_seconds=given.persist_seconds,
                proc_root=given.proc_root,
                powercap_root=given.powercap_root,
            )
        except ValueError as error:
            parser.error(str(error))
