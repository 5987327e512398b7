"""How many cores this process may use: its affinity, and the quota of its control groups."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores(root: Path = Path("/"), affinity: int | None = None) -> float:
    """Cores' worth of CPU time a second that this process may use, at least a tenth.

    `root` is where /proc and /sys are (a container of a quota sees its own group as the root of both versions).
    """
    allowed = float(affinity or len(os.sched_getaffinity(0)))
    for quota in (_quota_v2(root), _quota_v1(root)):
        if quota is not None:
            allowed = min(allowed, quota)
    return max(0.1, allowed)


def _quota_v2(root: Path) -> float | None:
    """The tightest `cpu.max` from the process's group up to the root."""
    base = root / "sys/fs/cgroup"
    group = base / _group(root, "0::").lstrip("/")
    found = []
    for folder in (group, *group.parents):
        words = _read(folder / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
            found.append(int(words[0]) / int(words[1]))
        if folder == base:
            break
    return min(found, default=None)


def _quota_v1(root: Path) -> float | None:
    base = root / "sys/fs/cgroup/cpu"
    for folder in (base / _group(root, "cpu").lstrip("/"), base):
        quota, period = (_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            return int(quota) / int(period)
    return None


def _group(root: Path, wanted: str) -> str:
    """The process's group in the hierarchy `wanted`: `0::` of version 2, or a controller of version 1."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        if wanted == "0::" and line.startswith("0::"):
            return line[3:]
        number_controllers_path = line.split(":", 2)
        if len(number_controllers_path) == 3 and wanted in number_controllers_path[1].split(","):
            return number_controllers_path[2]
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
