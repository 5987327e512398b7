"""Who changed which setting when: one JSON line a change, appended and synced before the change takes effect.

The log outlives the server; the versions of its last start can be gone back to. Every line holds the whole settings, so
that going back needs nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import structlog

from server.lines import append_line

log = structlog.get_logger(__name__)

Via = Literal["start", "cli", "http", "file"]

MAX_BYTES = 4_000_000
"""A larger log is kept aside as `.1`, in place of the one before, and begun anew. A line takes about 2 kB."""


@dataclass(frozen=True)
class Entry:
    """One version of the settings."""

    version: int
    time: str
    """UTC, to the second."""
    who: str
    """The user of the machine, or the name of the key."""
    via: Via
    changes: dict[str, tuple[Any, Any]]
    """By dotted key: before and after."""
    settings: dict[str, Any]
    """All that holds from then on."""
    restored: int | None = None
    """The version that was gone back to; None for a change of its own."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Entry:
        """The inverse. Raises KeyError, TypeError or ValueError on anything else."""
        if data["via"] not in get_args(Via):
            raise ValueError(f"via: {data['via']!r}")
        return cls(
            int(data["version"]),
            str(data["time"]),
            str(data["who"]),
            data["via"],
            {str(key): (before, after) for key, (before, after) in data["changes"].items()},
            dict(data["settings"]),
            None if data["restored"] is None else int(data["restored"]),
        )


def utc_text() -> str:
    """Now, for `Entry.time`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def append(path: Path, entry: Entry) -> None:
    """Add a line and wait until the disk has it. Raises OSError, and leaves the log as it was then. The caller holds
    the settings' lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, json.dumps(entry.to_dict(), separators=(",", ":")).encode(), 0o600)


def make_room(path: Path) -> None:
    """Keep a log that has grown too long aside. Only at a start: what can be gone back to stays in one file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            os.replace(path, path.with_name(f"{path.name}.1"))
    except FileNotFoundError:
        return


def read(path: Path) -> list[Entry]:
    """Every entry, oldest first; lines that are none (one that a crash cut off) are left out and logged."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(Entry.from_dict(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("audit_line_ignored", path=str(path), line=number, error=str(error))
    return found


def since_start(entries: list[Entry]) -> list[Entry]:
    """The entries of the last start, its own first."""
    begin = max((index for index, entry in enumerate(entries) if entry.via == "start"), default=0)
    return entries[begin:]


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """By dotted key, the leaves that differ; the version is none of them."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys([*before, *after]):
        old, new, key = before.get(name), after.get(name), f"{prefix}{name}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= differences(old, new, f"{key}.")
        elif old != new and key != "version":
            found[key] = (old, new)
    return found
