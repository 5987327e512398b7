"""When the requests of a run are sent: recorded counts or times, stretched to a run's length and mean rate. Pure."""

from __future__ import annotations

import csv
import gzip
import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "arrivals"
RECORDED = {"diurnal": FOLDER / "diurnal.csv", "bursty": FOLDER / "bursty.csv"}
FLAT = "flat"
COUNT_COLUMNS = ("count", "requests")
TIME_COLUMNS = {"t_s": 1.0, "t_ms": 1e-3}


class ArrivalsError(ValueError):
    """The recording cannot be used; the message names the file and the remedy."""


def arrivals(name: str, seconds: float, rate_per_s: float, seed: int) -> list[float]:
    """When requests come, seconds from the start, ascending: `rate_per_s * seconds` of them in the mean.

    `name` is `flat` (a Poisson process), `diurnal`, `bursty`, or a file (see `read_recording`). Raises ArrivalsError.
    """
    chance = random.Random(seed)
    wanted = rate_per_s * seconds
    if name == FLAT:
        return _by_counts([1.0], wanted, seconds, chance)
    recording = read_recording(RECORDED.get(name, Path(name)))
    if recording.times_s:
        return _by_times(recording.times_s, wanted, seconds)
    return _by_counts(recording.counts, wanted, seconds, chance)


class Recording:
    """Counts per equal step of time, or the times of single requests: one of the two is empty."""

    def __init__(self, counts: Sequence[float] = (), times_s: Sequence[float] = ()) -> None:
        self.counts = tuple(counts)
        self.times_s = tuple(times_s)


def read_recording(path: Path) -> Recording:
    """A .csv, .csv.gz or .parquet with a column `count` (or `requests`; rows are equal steps of time), or `t_s` or
    `t_ms` (one row a request). Raises ArrivalsError."""
    try:
        columns = _read_columns(path)
    except FileNotFoundError:
        known = ", ".join((FLAT, *RECORDED))
        raise ArrivalsError(f"{path}: does not exist; give a file, or one of {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArrivalsError(f"{path}: cannot be read ({error}); give a CSV or parquet file") from None
    for name in COUNT_COLUMNS:
        if name in columns:
            counts = _numbers(path, name, columns[name])
            if min(counts, default=0) < 0 or sum(counts) <= 0:
                raise ArrivalsError(f"{path}: column {name}: has no request, or less than none; give counts")
            return Recording(counts=counts)
    for name, unit_s in TIME_COLUMNS.items():
        if name in columns:
            times = sorted(value * unit_s for value in _numbers(path, name, columns[name]))
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
        within = (share - (sums[step] - counts[step])) / counts[step]
        times.append((step + within) * step_s)
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
