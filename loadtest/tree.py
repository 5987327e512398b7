"""CPU time and memory of a process and everything below it, as the stand-in for joules."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class TreeUse:
    """Cumulative CPU-seconds (user + system) by process id and name, and memory shared out fairly (PSS), bytes."""

    cpu_seconds: dict[int, float]
    names: dict[int, str]
    pss_bytes: int

    def since(self, before: TreeUse) -> float:
        """CPU-seconds that the processes of now spent since `before`; what one that ended in between spent is not
        known."""
        return sum(spent - before.cpu_seconds.get(pid, 0.0) for pid, spent in self.cpu_seconds.items())

    def by_name_since(self, before: TreeUse) -> dict[str, float]:
        """The same, split by process name, largest first."""
        split: dict[str, float] = {}
        for pid, spent in self.cpu_seconds.items():
            name = self.names[pid]
            split[name] = split.get(name, 0.0) + spent - before.cpu_seconds.get(pid, 0.0)
        return dict(sorted(split.items(), key=lambda item: -item[1]))


def read_tree(root_pid: int, memory: bool = False) -> TreeUse:
    """Read the whole tree now. `memory` costs a few milliseconds a process."""
    root = psutil.Process(root_pid)
    cpu: dict[int, float] = {}
    names: dict[int, str] = {}
    pss = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = process.cpu_times()
            cpu[process.pid] = times.user + times.system
            names[process.pid] = _name(process)
            if memory:
                pss += process.memory_full_info().pss
    return TreeUse(cpu, names, pss)


def _name(process: psutil.Process) -> str:
    command = process.cmdline()
    if not command:
        return process.name()
    if command[0].startswith("ray::"):
        return command[0].split(".")[0]
    for word in command[1:]:
        if word.endswith(".py"):
            return word.rsplit("/", 1)[-1]
        if word.startswith("server."):
            return word
    return command[0].rsplit("/", 1)[-1] if len(command) == 1 else process.name()
