"""Hourly totals as reports read them, and the period that they add up to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.node.hours import HOUR_S, OPEN_FILE, Series, read_lines, series
from server.report.errors import ReportError


@dataclass(frozen=True)
class HourRow:
    """What counters grew by in an hour, and what has to be known beside them."""

    hour: str
    """Its beginning, UTC: `2026-11-28T13:00:00Z`."""
    seconds: float
    """Seconds that were metered."""
    counters: Mapping[Series, float]
    intensity: float | None
    """Mean grams per kWh of the grid over the seconds in which it was known; None if it never was."""
    intensity_kinds: Mapping[str, float]
    """Seconds by how it was known."""
    pue: float
    uncertainty: Mapping[str, float]
    dynamic_uncertainty: Mapping[str, float]
    zone: str = ""
    provider: str = ""
    memory_gib: float | None = None
    compiled: Sequence[Mapping[str, Any]] = ()
    machines: float = 1.0
    """How many machines the counters are of, in the mean over `seconds`."""

    @property
    def known_share(self) -> float:
        """Share of `seconds` in which the grid's intensity was known."""
        return min(sum(self.intensity_kinds.values()) / self.seconds, 1.0) if self.seconds > 0 else 0.0

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> HourRow:
        """From a line of the hourly files. Raises ReportError."""
        try:
            grid = line["grid"]
            known_s = float(grid["seconds"])
            return cls(
                hour=str(line["hour"]),
                seconds=float(line["seconds"]),
                counters={series(name, labels): float(value) for name, labels, value in line["counters"]},
                intensity=float(grid["gram_seconds"]) / known_s if known_s > 0 else None,
                intensity_kinds={str(kind): float(seconds) for kind, seconds in grid["kinds"].items()},
                pue=float(line["pue"]),
                uncertainty={str(name): float(value) for name, value in line["uncertainty"].items()},
                dynamic_uncertainty={str(name): float(value) for name, value in line["dynamic_uncertainty"].items()},
                zone=str(line["zone"]),
                provider=str(line["provider"]),
                memory_gib=float(line["memory_gib"]),
                compiled=tuple(line["compiled"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ReportError(f"hour {line.get('hour')!r}: not a line of hourly totals ({error!r})") from None


def hour_at(text: str) -> str:
    """A date or time as the hour that it lies in. Raises ReportError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ReportError(f"{text!r}: no date; write 2026-11-28 or 2026-11-28T13:00, UTC") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        raise ReportError(f"{text!r}: beyond the years that can be told; write 2026-11-28, UTC") from None
    return moment.replace(minute=0, second=0, microsecond=0).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_folder(folder: Path, begin: str, end: str) -> list[HourRow]:
    """Rows of the hours from `begin` up to, but not with, `end`. Raises ReportError if there are none."""
    if not folder.is_dir():
        raise ReportError(f"{folder}: no hourly totals; they are written where the server runs (server.run_dir)")
    lines = [line for path in sorted(folder.glob("????-??.jsonl")) for line in read_lines(path)]
    written = {line["number"] for line in lines}
    if (folder / OPEN_FILE).is_file():
        lines += [line for line in read_lines(folder / OPEN_FILE) if line["number"] not in written]
    found = [HourRow.from_line(line) for line in lines if begin <= str(line.get("hour")) < end]
    if not found:
        hours = sorted(str(line.get("hour")) for line in lines)
        there = f"there are those of {hours[0]} to {hours[-1]}" if hours else "there are none yet"
        raise ReportError(f"{folder}: no totals from {begin} to {end}; {there}")
    return sorted(found, key=lambda row: row.hour)


@dataclass(frozen=True)
class Period:
    """Rows that belong together."""

    rows: Sequence[HourRow]
    begin: str
    end: str
    origin: str
    """Where the rows come from, in words."""
    _sums: Mapping[Series, float] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[HourRow], begin: str, end: str, origin: str) -> Period:
        """Add the rows up."""
        sums: dict[Series, float] = {}
        for row in rows:
            for key, value in row.counters.items():
                sums[key] = sums.get(key, 0.0) + value
        return cls(rows, begin, end, origin, sums)

    @property
    def hours(self) -> float:
        """Hours that were metered."""
        return sum(row.seconds for row in self.rows) / HOUR_S

    @property
    def machine_hours(self) -> float:
        """The same, each machine's hours counted."""
        return sum(row.seconds * row.machines for row in self.rows) / HOUR_S

    @property
    def latest(self) -> HourRow:
        """The last row, for what does not add up: compile costs, the zone's name."""
        return self.rows[-1]

    def sum(self, name: str, keep: Callable[[Mapping[str, str]], bool] = lambda labels: True) -> float:
        """The sum of a counter's series whose labels `keep` accepts."""
        return sum(value for (found, labels), value in self._sums.items() if found == name and keep(dict(labels)))

    def by(self, name: str, *wanted: str) -> dict[tuple[str, ...], float]:
        """A counter by the values of some labels, sorted."""
        found: dict[tuple[str, ...], float] = {}
        for (series_name, pairs), value in self._sums.items():
            if series_name == name:
                labels = dict(pairs)
                key = tuple(labels.get(label, "") for label in wanted)
                found[key] = found.get(key, 0.0) + value
        return dict(sorted(found.items()))

    def weighted(self, value: Callable[[HourRow], Mapping[str, float]]) -> dict[str, float]:
        """A figure by source, the largest of all hours: what covers all of them."""
        found: dict[str, float] = {}
        for row in self.rows:
            for source, ratio in value(row).items():
                found[source] = max(found.get(source, 0.0), ratio)
        return found


def row_sum(row: HourRow, name: str, **labels: str) -> float:
    """The sum of a counter's series in one hour, whose labels include `labels`."""
    wanted = set(labels.items())
    return sum(value for (found, pairs), value in row.counters.items() if found == name and wanted <= set(pairs))


def dumps(tree: Any) -> bytes:
    """JSON that is the same for the same tree."""
    return json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def joined(words: Iterable[str]) -> str:
    """Words in order, each once, with plus signs."""
    return "+".join(dict.fromkeys(sorted(words))) or "none"
