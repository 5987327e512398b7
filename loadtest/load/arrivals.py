"""When the requests of a run are sent: a made course or a recording, stretched to a run's length and mean rate."""

from __future__ import annotations

import csv
import gzip
import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

from loadtest.load.synthetic import SYNTHETIC

FLAT = "flat"
MADE = (FLAT, *SYNTHETIC)
COUNT_COLUMNS = ("count", "requests")
TIME_COLUMNS = {"t_s": 1.0, "t_ms": 1e-3}


class ArrivalsError(ValueError):
    """The recording cannot be used; the message names the file and the remedy."""


def arrivals(name: str, seconds: float, rate_per_s: float, seed: int, rows: str | None = None) -> list[float]:
    """When requests come, seconds from the start, ascending: `rate_per_s * seconds` of them in the mean.

    `name` is `flat` (a Poisson process), `diurnal`, `bursty` (see `synthetic`), or a file (see `read_recording`), of
    which `rows`, as `FROM:TO`, takes a window. Raises ArrivalsError.
    """
    chance = random.Random(seed)
    wanted = rate_per_s * seconds
    if name in MADE:
        if rows is not None:
            raise ArrivalsError(f"--rows: {name} is made, not recorded; leave it out, or name a file in --arrivals")
        course = [1.0] if name == FLAT else SYNTHETIC[name](chance)
        return _by_counts(course, wanted, seconds, chance)
    recording = read_recording(Path(name), rows)
    if recording.times_s:
        return _by_times(recording.times_s, wanted, seconds)
    return _by_counts(recording.counts, wanted, seconds, chance)


class Recording:
    """Counts per equal step of time, or the times of single requests: one of the two is empty."""

    def __init__(self, counts: Sequence[float] = (), times_s: Sequence[float] = ()) -> None:
        self.counts = tuple(counts)
        self.times_s = tuple(times_s)


def read_recording(path: Path, rows: str | None = None) -> Recording:
    """A .csv, .csv.gz or .parquet with a column `count` (or `requests`; rows are equal steps of time), or `t_s` or
    `t_ms` (one row a request); of its rows those of `FROM:TO`, from 0, TO left out. Raises ArrivalsError."""
    try:
        columns = _read_columns(path)
    except FileNotFoundError:
        raise ArrivalsError(f"{path}: does not exist; give a file, or one of {', '.join(MADE)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArrivalsError(f"{path}: cannot be read ({error}); give a CSV or parquet file") from None
    for name in COUNT_COLUMNS:
        if name in columns:
            counts = _window(path, _numbers(path, name, columns[name]), rows)
            if min(counts, default=0) < 0 or sum(counts) <= 0:
                raise ArrivalsError(f"{path}: column {name}: has no request, or less than none; give counts")
            return Recording(counts=counts)
    for name, unit_s in TIME_COLUMNS.items():
        if name in columns:
            window = _window(path, _numbers(path, name, columns[name]), rows)
            times = sorted(value * unit_s for value in window)
            if len(times) < 2 or times[0] == times[-1]:
                raise ArrivalsError(f"{path}: column {name}: fewer than two moments; give a longer recording")
            return Recording(times_s=times)
    wanted = ", ".join((*COUNT_COLUMNS, *TIME_COLUMNS))
    raise ArrivalsError(f"{path}: none of its columns is {wanted}; it has {', '.join(columns)}")


def _read_columns(path: Path) -> dict[str, list[object]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        table = parquet.read_table(path)
        return {name: table.column(name).to_pylist() for name in table.column_names}
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = list(csv.DictReader(content.decode().splitlines()))
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}


def _window(path: Path, values: list[float], rows: str | None) -> list[float]:
    if rows is None:
        return values
    first, _, end = rows.partition(":")
    bounds = (first or "0", end or str(len(values)))
    if ":" not in rows or not all(bound.isascii() and bound.isdigit() for bound in bounds):
        raise ArrivalsError(f"--rows: {rows!r} is not FROM:TO; give two row numbers, such as 0:3600")
    if not int(bounds[0]) < int(bounds[1]) <= len(values):
        raise ArrivalsError(f"--rows: {rows} is no part of {path}, which has {len(values)} rows from 0; give such rows")
    return values[int(bounds[0]) : int(bounds[1])]


def _numbers(path: Path, name: str, values: Iterable[object]) -> list[float]:
    numbers = []
    for row, value in enumerate(values, 1):
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ArrivalsError(f"{path}: column {name}, row {row}: {value!r} is no number; mend or remove it")
        numbers.append(number)
    return numbers


def _by_counts(counts: Sequence[float], wanted: float, seconds: float, chance: random.Random) -> list[float]:
    """A Poisson process whose rate follows the counts: steps that had none get none."""
    sums = list(accumulate(counts))
    step_s = seconds / len(counts)
    times = []
    at = chance.expovariate(1.0)
    while at < wanted:
        share = at / wanted * sums[-1]
        step = bisect_left(sums, share)
        within = 1 - (sums[step] - share) / counts[step]
        times.append((step + max(0.0, within)) * step_s)  # rounding may leave it just below the step
        at += chance.expovariate(1.0)
    return times


def _by_times(times_s: Sequence[float], wanted: float, seconds: float) -> list[float]:
    """The first requests of the recording, as many as are wanted, at their own distances: from the beginning again
    where the recording is too short."""
    count = round(wanted)
    lap_s = (times_s[-1] - times_s[0]) * len(times_s) / (len(times_s) - 1)
    raw = [times_s[n % len(times_s)] - times_s[0] + n // len(times_s) * lap_s for n in range(count)]
    span_s = raw[-1] * count / (count - 1) if count > 1 and raw[-1] > 0 else 1.0
    return [at * seconds / span_s for at in raw]
