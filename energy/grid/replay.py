"""A recorded intensity series (CSV), played at any speed on a clock that is passed in."""

from __future__ import annotations

import csv
import gzip
import io
import time
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from energy.grid.signal import GridError, Intensity, NoData, format_utc, parse_utc, plausible

TIME_COLUMNS = ("utc_time", "time", "datetime", "timestamp", "date", "from", "utc_hour", "local_minute")
VALUE_COLUMNS = (
    "ci_lifecycle",
    "grams_per_kwh",
    "grams",
    "carbon_intensity",
    "intensity",
    "gco2_per_kwh",
    "ci_direct",
)
HOUR = timedelta(hours=1)
Forecasts = Mapping[datetime, Sequence[float]]
"""By the time of issue: gCO2e/kWh of the hours from then on."""
MISSING = ("", "nan", "null", "none", "na")


class BadRecording(GridError):
    """The file is not a recording; the message names the file, the row and the remedy."""


@dataclass(frozen=True)
class Recording:
    """Times (UTC, rising) and gCO2e/kWh; None where the recording has a gap. `step` is the usual distance; a feed may
    change it on the way."""

    times: tuple[datetime, ...]
    grams_per_kwh: tuple[float | None, ...]
    step: timedelta
    column: str = ""
    """Name of the column of the values; "" where there is no header."""

    @property
    def start(self) -> datetime:
        """Time of the first row."""
        return self.times[0]

    @property
    def length(self) -> timedelta:
        """From the first row to the end of the last row's period."""
        return self.times[-1] + self.step - self.times[0]

    def holds(self, index: int) -> timedelta:
        """How long a row holds: until the next one where another came at the same distance just before or after, within
        an hour (the feed changed its step), else for the usual step."""
        own = self._distance(index)
        if own in (None, self.step) or own not in (self._distance(index - 1), self._distance(index + 1)):
            return self.step
        return own if own <= HOUR else self.step

    def _distance(self, index: int) -> timedelta | None:
        """From a row to the next; None where there is none of the two."""
        return self.times[index + 1] - self.times[index] if 0 <= index < len(self.times) - 1 else None

    def at(self, moment: datetime) -> tuple[datetime, float]:
        """Start and value of the period that covers `moment`. Raises NoData outside the rows and in gaps."""
        index = bisect_right(self.times, moment) - 1
        if index < 0 or moment >= self.times[index] + self.holds(index):
            raise NoData(f"the recording has no row for {format_utc(moment)}")
        value = self.grams_per_kwh[index]
        if value is None:
            raise NoData(f"the recording's row {format_utc(self.times[index])} is empty")
        return self.times[index], value


def read_recording(
    path: Path,
    value_columns: Sequence[str] = VALUE_COLUMNS,
    check: Callable[[float], float] = plausible,
) -> Recording:
    """Read a CSV (plain or `.gz`) of times and intensities, or of whatever else `value_columns` and `check` allow.

    Columns are found by name (`TIME_COLUMNS`, `value_columns`, in that order of preference); without a header
    the first column is the time and the second the value. Times without a zone are UTC. Raises BadRecording.
    """
    rows = _rows(path)
    time_column, value_column, first = _columns(path, rows[0], value_columns)
    times: list[datetime] = []
    values: list[float | None] = []
    for number, row in enumerate(rows[first:], first + 1):
        try:
            moment, value = parse_utc(row[time_column]), _value(row[value_column], check)
        except (IndexError, ValueError, GridError) as error:
            raise BadRecording(f"{path}, row {number}: {error}; mend or remove the row") from None
        if times and moment <= times[-1]:
            raise BadRecording(f"{path}, row {number}: its time is not after the row before; sort by time, in UTC")
        times.append(moment)
        values.append(value)
    if len(times) < 2:
        raise BadRecording(f"{path}: fewer than two rows; give a series")
    steps = Counter(later - earlier for earlier, later in pairwise(times))
    column = rows[0][value_column].strip().lower() if first else ""
    return Recording(tuple(times), tuple(values), steps.most_common(1)[0][0], column)


def read_forecasts(path: Path) -> dict[datetime, tuple[float, ...]]:
    """Forecasts as issued: a CSV (plain or `.gz`) of `issued_utc`, `target_utc`, `forecast`, whose hours follow one
    another from the hour of issue. Raises BadRecording."""
    rows = _rows(path)
    try:
        issue, target, value = (rows[0].index(name) for name in ("issued_utc", "target_utc", "forecast"))
    except ValueError as error:
        raise BadRecording(f"{path}: {error}; give the columns issued_utc, target_utc and forecast") from None
    found: dict[datetime, list[float]] = {}
    for number, row in enumerate(rows[1:], 1):
        try:
            issued = parse_utc(row[issue])
            hours = found.setdefault(issued, [])
            if parse_utc(row[target]) != issued + HOUR * len(hours):
                raise ValueError(f"target_utc {row[target]} does not follow")
            hours.append(plausible(float(row[value])))
        except (IndexError, ValueError, GridError) as error:
            raise BadRecording(f"{path}, row {number}: {error}; mend or remove the row") from None
    return {issued: tuple(hours) for issued, hours in found.items()}


class ReplayProvider:
    """Plays a recording, `speed` recorded seconds a second from `start`; at its end it starts over."""

    name = "replay"

    def __init__(
        self,
        recording: Recording,
        zone: str = "replay",
        speed: float = 1.0,
        start: datetime | None = None,
        clock: Callable[[], float] = time.monotonic,
        forecasts: Forecasts | None = None,
        began_s: float | None = None,
    ) -> None:
        """`forecasts` are what was issued at the time; without them there are none. `began_s` is when, by `clock`, the
        playing began; None for now."""
        self.zone = zone
        self._forecasts = forecasts or {}
        self._issues = sorted(self._forecasts)
        self._recording = recording
        self._speed = speed
        self._clock = clock
        self._began_s = clock() if began_s is None else began_s
        begin = recording.start if start is None else start
        if not recording.start <= begin < recording.start + recording.length:
            end = format_utc(recording.start + recording.length)
            raise BadRecording(
                f"replay_start {format_utc(begin)} lies outside the recording, "
                f"{format_utc(recording.start)} to {end}; give a time within it"
            )
        self._offset = begin - recording.start

    def now(self) -> datetime:
        """The recording's time that is being played."""
        played = self._offset + timedelta(seconds=(self._clock() - self._began_s) * self._speed)
        return self._recording.start + played % self._recording.length

    def past(self, days: int) -> tuple[Intensity, ...]:
        """The rows of the days before the time that is being played, oldest first: a recording has its own past."""
        now = self.now()
        first = bisect_right(self._recording.times, now - timedelta(days=days))
        stop = bisect_right(self._recording.times, now - self._recording.step)
        return tuple(
            Intensity(self.zone, self.name, moment, grams, "replay")
            for moment, grams in zip(
                self._recording.times[first:stop], self._recording.grams_per_kwh[first:stop], strict=True
            )
            if grams is not None
        )

    async def latest(self) -> Intensity:
        """The row being played. Raises NoData in a gap."""
        moment, grams_per_kwh = self._recording.at(self.now())
        return Intensity(self.zone, self.name, moment, grams_per_kwh, "replay")

    async def history(self) -> tuple[Intensity, ...]:
        """None: the recording's past is not what the ladder saw of it. Whoever may know it asks for `past`."""
        return ()

    async def forecast(self) -> tuple[Intensity, ...]:
        """The newest that had been issued; none without a record of them: peeking ahead would be no forecast."""
        place = bisect_right(self._issues, self.now())
        if not place:
            return ()
        issued = self._issues[place - 1]
        return tuple(
            Intensity(self.zone, self.name, issued + HOUR * hour, grams, "forecast", True, issued)
            for hour, grams in enumerate(self._forecasts[issued])
        )

    async def aclose(self) -> None:
        """Nothing to let go."""


def _rows(path: Path) -> list[list[str]]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise BadRecording(f"{path}: {error}; give a readable CSV or .csv.gz file") from None
    if not rows:
        raise BadRecording(f"{path}: empty; give a CSV of times and gCO2e/kWh")
    return rows


def _columns(path: Path, header: Sequence[str], value_columns: Sequence[str]) -> tuple[int, int, int]:
    """Indices of the time and value columns and of the first data row."""
    try:
        parse_utc(header[0])
        return 0, 1, 0
    except ValueError:
        names = [name.strip().lower() for name in header]
    found = []
    for wanted, what in ((TIME_COLUMNS, "time"), (value_columns, "value")):
        column = next((names.index(name) for name in wanted if name in names), None)
        if column is None:
            raise BadRecording(f"{path}: no {what} column among {names}; name one {' or '.join(wanted[:3])}")
        found.append(column)
    return found[0], found[1], 1


def _value(text: str, check: Callable[[float], float]) -> float | None:
    return None if text.strip().lower() in MISSING else check(float(text))
