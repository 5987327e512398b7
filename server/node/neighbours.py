"""Other node processes of this machine, of servers with a run folder of their own: each counts all that it draws."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_COMMAND = b"\0-m\0server.node\0"


def neighbours(proc_root: Path = Path("/proc")) -> list[int]:
    """Process ids of the other node processes that this `/proc` shows."""
    found = []
    for name in os.listdir(proc_root):
        if name.isdecimal() and int(name) != os.getpid():
            with contextlib.suppress(OSError):  # it ended, or is somebody else's
                if _COMMAND in (proc_root / name / "cmdline").read_bytes():
                    found.append(int(name))
    return sorted(found)
