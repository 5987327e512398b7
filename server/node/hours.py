"""Hourly totals that outlive the process: what every counter of `/metrics` grew by, hour by hour, for reports.

A closed hour is one line of JSON in `hours/YYYY-MM.jsonl` beside the totals; the hour that is open stands in
`hours/open.json`, a minute old at most. A line is handed to the state file before it is appended, and has a number:
after a crash in between it is appended if its number is not there yet, so that no hour is lost or counted twice. A book
that does not know the lines in the files, since the state was lost, goes on with the numbers above theirs. If the clock
goes back, an hour has two lines, and readers add them up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.lines import append_line

log = logging.getLogger(__name__)

VERSION = 1
FOLDER = "hours"
OPEN_FILE = "open.json"
HOUR_S = 3600
KEPT_MONTHS = 36
"""Older files are removed: a bound on the disk, and longer than any report that is asked for."""
MAX_UNWRITTEN = 240
TAIL_BYTES = 65_536

Series = tuple[str, tuple[tuple[str, str], ...]]
Counters = Mapping[Series, float]


def hour_of(time_s: float) -> str:
    """The hour of a time since the epoch, UTC, as it begins: `2026-11-28T13:00:00Z`."""
    return datetime.fromtimestamp(time_s - time_s % HOUR_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class GridHour:
    """The grid's intensity over the seconds of an hour in which it was known."""

    seconds: float = 0.0
    gram_seconds: float = 0.0
    kinds: dict[str, float] = field(default_factory=dict)
    """Seconds by how the intensity was known: live, forecast, …"""

    def pass_time(self, grams_per_kwh: float, kind: str, seconds: float) -> None:
        """Add some time at this intensity (of the grid alone, without PUE)."""
        self.seconds += seconds
        self.gram_seconds += grams_per_kwh * seconds
        self.kinds[kind] = self.kinds.get(kind, 0.0) + seconds

    def to_json(self) -> dict[str, Any]:
        """As plain maps."""
        return {"seconds": self.seconds, "gram_seconds": self.gram_seconds, "kinds": self.kinds}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> GridHour:
        """Turn `to_json` back."""
        kinds = {str(kind): float(seconds) for kind, seconds in tree["kinds"].items()}
        return cls(float(tree["seconds"]), float(tree["gram_seconds"]), kinds)


@dataclass
class HourBook:
    """The open hour, and the lines that are not in their file yet."""

    hour: str = ""
    number: int = 0
    """Of the open hour's line."""
    mark: dict[Series, float] = field(default_factory=dict)
    """Counters as the hour began."""
    seconds: float = 0.0
    """Seconds of the hour that were metered."""
    grid: GridHour = field(default_factory=GridHour)
    unwritten: list[dict[str, Any]] = field(default_factory=list)
    _rows: list[Any] = field(default_factory=list, repr=False, compare=False)
    _rows_of: dict[Series, float] | None = field(default=None, repr=False, compare=False)

    def begin(self, hour: str, counters: Counters) -> None:
        """Open the first hour of all."""
        self.hour, self.mark = hour, dict(counters)

    def pass_time(self, seconds: float, grams_per_kwh: float | None, kind: str) -> None:
        """Some time of the open hour was metered."""
        self.seconds += seconds
        if grams_per_kwh is not None:
            self.grid.pass_time(grams_per_kwh, kind or "unknown", seconds)

    def line(self, counters: Counters, described: Mapping[str, Any]) -> dict[str, Any]:
        """The open hour's line so far. A counter that went back, after totals were lost, counts from 0."""
        grown = []
        for (name, labels), value in sorted(counters.items()):
            before = self.mark.get((name, labels), 0.0)
            difference = value - before if value >= before else value
            if difference > 0:
                grown.append([name, dict(labels), round(difference, 9)])
        return {
            "version": VERSION,
            "number": self.number,
            "hour": self.hour,
            "seconds": round(self.seconds, 3),
            "grid": self.grid.to_json(),
            **described,
            "counters": grown,
        }

    def roll(self, hour: str, counters: Counters, described: Mapping[str, Any]) -> None:
        """Close the open hour and begin `hour`."""
        self.unwritten.append(self.line(counters, described))
        del self.unwritten[:-MAX_UNWRITTEN]
        self.hour, self.number, self.mark = hour, self.number + 1, dict(counters)
        self.seconds, self.grid = 0.0, GridHour()

    def to_json(self) -> dict[str, Any]:
        """As plain maps and lists."""
        return {
            "hour": self.hour,
            "number": self.number,
            "mark": self._mark_rows(),
            "seconds": self.seconds,
            "grid": self.grid.to_json(),
            "unwritten": self.unwritten,
        }

    def _mark_rows(self) -> list[Any]:
        """The mark as lists; made once an hour, though it is written every few seconds."""
        if self._rows_of is not self.mark:
            self._rows_of = self.mark
            self._rows = [[name, dict(labels), value] for (name, labels), value in self.mark.items()]
        return self._rows

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> HourBook:
        """Turn `to_json` back. Raises ValueError, KeyError or TypeError."""
        return cls(
            hour=str(tree["hour"]),
            number=int(tree["number"]),
            mark={series(name, labels): float(value) for name, labels, value in tree["mark"]},
            seconds=float(tree["seconds"]),
            grid=GridHour.from_json(tree["grid"]),
            unwritten=list(tree["unwritten"]),
        )


def series(name: str, labels: Mapping[str, str]) -> Series:
    """The key of a series."""
    return name, tuple(sorted(labels.items()))


class HourFiles:
    """The folder of lines."""

    def __init__(self, folder: Path) -> None:
        """Made when the first line comes."""
        self.folder = folder

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append the lines that are not there yet, and wait until the disk has them. Raises OSError."""
        lines = list(lines)
        if not lines:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        last = self.last_number()
        for line in lines:
            if line["number"] > last:
                self._append(line)
        self._prune()

    def _append(self, line: Mapping[str, Any]) -> None:
        path = self.folder / f"{line['hour'][:7]}.jsonl"
        append_line(path, json.dumps(line, separators=(",", ":"), sort_keys=True).encode(), 0o644)

    def last_number(self) -> int:
        """The highest number in the files, which a file's last line has; -1 without any. Raises OSError."""
        newest = sorted(self.folder.glob("????-??.jsonl"))[-2:]
        return max((line["number"] for path in newest if (line := _last_line(path)) is not None), default=-1)

    def _prune(self) -> None:
        for path in sorted(self.folder.glob("????-??.jsonl"))[:-KEPT_MONTHS]:
            path.unlink(missing_ok=True)

    def write_open(self, line: Mapping[str, Any], write: Callable[[Path, bytes], None]) -> None:
        """Replace the open hour's line, by `write(path, data)`. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.folder / OPEN_FILE, json.dumps(line, separators=(",", ":"), sort_keys=True).encode())

    def left_open(self) -> list[dict[str, Any]]:
        """The line of the hour that was open when it was last written; none without the file. Raises OSError."""
        path = self.folder / OPEN_FILE
        return read_lines(path) if path.is_file() else []


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; what is none is left out with a warning."""
    found = []
    for text in path.read_bytes().splitlines():
        try:
            found.append(_parsed(text))
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: a line is left out: %r", path, error)
    return found


def _parsed(text: bytes) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(text)
    if line["version"] != VERSION or not isinstance(line["number"], int):
        raise ValueError(f"version {line['version']!r}")
    return line


def _last_line(path: Path) -> dict[str, Any] | None:
    """The last line of a file, without reading all of it; None if it has none. Raises OSError."""
    with path.open("rb") as stream:
        begin = stream.seek(0, os.SEEK_END)
        rest = b""
        while begin:
            end, begin = begin, max(begin - TAIL_BYTES, 0)
            stream.seek(begin)
            cut, *texts = (stream.read(end - begin) + rest).split(b"\n")
            for text in reversed(texts if begin else [cut, *texts]):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    return _parsed(text)
            rest = cut
    return None
