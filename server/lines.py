"""Files that only grow, by a line at a time: totals by the hour, and who changed what."""

from __future__ import annotations

import os
from pathlib import Path


def append_line(path: Path, line: bytes, mode: int) -> None:
    """Add `line` (without its end) and wait until the disk has it; a new file gets `mode`. One writer at a time.

    Raises OSError and leaves the file as it was then: a disk that is nearly full takes a part of a line first. A line
    that a power cut left in the middle is ended.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)
    try:
        size = os.fstat(handle).st_size
        torn = size and os.pread(handle, 1, size - 1) != b"\n"
        data = (b"\n" if torn else b"") + line + b"\n"
        try:
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)
