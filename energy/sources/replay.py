"""Plays recorded counters back: what a machine's sources gave once, on any machine, as fast as it is asked for.

python -m energy.sources.replay --seconds 60 --out readings.csv     # record what this machine's counters give

A recording is a CSV file of `time_ns, source, device, domain, energy_uj` and how the counter behaves (`wraps_at_uj`,
`max_watts`, `limit_watts`, empty for none; `overlaps`, `never_rests`, `on_cpu` as 0 or 1). Rows of one read share their
`time_ns`; a domain that could not be read has no row there.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

from energy.domains import Domain, EnergySource, Reading

NAME = "fake"
FIELDS = (
    "time_ns",
    "source",
    "device",
    "domain",
    "energy_uj",
    "wraps_at_uj",
    "max_watts",
    "overlaps",
    "never_rests",
    "on_cpu",
    "limit_watts",
)


class RecordingError(ValueError):
    """A recording cannot be read; the message names the line and the remedy."""


class ReplaySource:
    """One recorded read a `read`; after the last one its counters are unreadable.

    The label `source` of every figure is `fake`: what is played back is not what this machine draws.
    """

    name = NAME

    def __init__(self, reads: Sequence[Sequence[Reading]], *, relative_uncertainty: float = 0.0) -> None:
        """`reads` as `read_recording` gives them."""
        self._reads = iter(reads)
        self._domains = list(dict.fromkeys(reading.domain for read in reads for reading in read))
        self.relative_uncertainty = self.dynamic_uncertainty = relative_uncertainty

    def domains(self) -> list[Domain]:
        """Every domain of the recording."""
        return self._domains

    def read(self) -> list[Reading]:
        """The next recorded read."""
        return list(next(self._reads, ()))


def read_recording(path: Path) -> list[list[Reading]]:
    """The reads of a recording, in order; domains are of the source `fake`. Raises RecordingError."""
    with path.open(encoding="utf-8", newline="") as stream:
        lines = (line for line in stream if not line.startswith("#"))
        try:
            readings = [_reading(row) for row in csv.DictReader(lines)]
        except (KeyError, TypeError, ValueError) as error:
            raise RecordingError(f"{path}: {error!r}; a row has the fields {', '.join(FIELDS)}") from None
    return [list(read) for _, read in groupby(readings, key=lambda reading: reading.time_ns)]


def _reading(row: dict[str, str]) -> Reading:
    domain = Domain(
        row["domain"],
        row["device"],
        NAME,
        wraps_at_uj=int(row["wraps_at_uj"]) if row["wraps_at_uj"] else None,
        max_watts=float(row["max_watts"]) if row["max_watts"] else None,
        limit_watts=float(row["limit_watts"]) if row.get("limit_watts") else None,  # not in the recordings of before
        overlaps=row["overlaps"] == "1",
        never_rests=row["never_rests"] == "1",
        on_cpu=row["on_cpu"] == "1",
    )
    return Reading(domain, int(row["energy_uj"]), int(row["time_ns"]))


def record(
    sources: Iterable[EnergySource],
    out: Path,
    reads: int,
    period_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> int:
    """Read the sources so often and write what they gave; returns the number of rows."""
    rows = 0
    with out.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(FIELDS)
        for number in range(reads):
            if number:
                sleep(period_s)
            time_ns = clock_ns()
            for reading in (reading for source in sources for reading in source.read()):
                domain = reading.domain
                flags = (int(domain.overlaps), int(domain.never_rests), int(domain.on_cpu))
                bounds = (domain.wraps_at_uj or "", domain.max_watts or "")
                named = (domain.source, domain.device, domain.name, reading.energy_uj)
                writer.writerow((time_ns, *named, *bounds, *flags, domain.limit_watts or ""))
                rows += 1
    return rows


def main() -> None:
    """Record this machine's sources."""
    from energy.sources import select_sources

    parser = argparse.ArgumentParser(description="Record what this machine's energy counters give.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--period", type=float, default=1.0, help="seconds between two reads")
    parser.add_argument("--source", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    reads = round(given.seconds / given.period) + 1
    rows = record(select_sources(given.source).sources, given.out, reads, given.period)
    print(f"{rows} readings in {given.out}; play them back with energy.sources.replay.ReplaySource")


if __name__ == "__main__":
    main()
