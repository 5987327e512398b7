"""What a replay is fed: recorded intensity and load on one even grid of steps, and what the feed may do wrong."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from energy.grid.replay import BadRecording, Recording, read_recording
from server.replay.errors import ReplayError
from server.replay.sources import read_load

Floats = npt.NDArray[np.float64]

LONGEST_STEP = timedelta(minutes=30)
"""The dial is looked at so often at least; recordings with longer periods are held."""
DIURNAL_SWING = 0.6
DIURNAL_PEAK_HOUR = 14.0
"""`diurnal` load is `1 + 0.6 cos` of the hour of the day, highest at 14 h local time (see `Course.of`)."""


@dataclass(frozen=True)
class Course:
    """Steps of equal length. `grams_per_kwh` is NaN in the recording's gaps; `load` is requests a second, relative or
    absolute as it was given."""

    zone: str
    start: datetime
    step_s: float
    grams_per_kwh: Floats
    load: Floats

    def __len__(self) -> int:
        return len(self.grams_per_kwh)

    @property
    def days(self) -> float:
        """Length in days."""
        return len(self) * self.step_s / 86_400

    @property
    def known_share(self) -> float:
        """Share of the steps whose intensity is recorded."""
        return float(np.isfinite(self.grams_per_kwh).mean())

    def times(self) -> npt.NDArray[np.datetime64]:
        """Start of every step, UTC."""
        first = np.datetime64(self.start.replace(tzinfo=None), "s")
        return first + np.arange(len(self)) * np.timedelta64(round(self.step_s), "s")

    def cut(self, begin: int, end: int) -> Course:
        """Steps `begin` to `end` alone."""
        start = self.start + timedelta(seconds=begin * self.step_s)
        return Course(self.zone, start, self.step_s, self.grams_per_kwh[begin:end], self.load[begin:end])


def read_course(grid: Path, load: str, utc_offset_h: float = 0.0) -> Course:
    """A course of the recording `grid` and `load` (see `with_load`). Raises ReplayError."""
    try:
        recording = read_recording(grid)
    except BadRecording as error:
        raise ReplayError(f"--grid: {error}") from None
    return course_of(grid.name.split(".")[0], recording, load, utc_offset_h)


def course_of(zone: str, recording: Recording, load: str, utc_offset_h: float = 0.0) -> Course:
    """A course of a recording and `load` (see `with_load`). Raises ReplayError."""
    step = min(recording.step, LONGEST_STEP)
    held = max(1, round(recording.step / step))
    step_s = recording.step.total_seconds() / held
    grams = np.repeat(_even(recording), held)
    if not np.isfinite(grams).any():
        raise ReplayError(f"--grid: {zone} holds no intensity, only empty rows; give a recording with some")
    course = Course(zone, recording.start, step_s, grams, np.ones(len(grams)))
    return with_load(course, load, utc_offset_h)


def with_load(course: Course, load: str, utc_offset_h: float = 0.0) -> Course:
    """The course with another load: `flat`, `diurnal`, the path of a CSV of times and requests, or the address of a
    Prometheus server that scrapes ours. `utc_offset_h` is the local time's offset, for `diurnal`. A recorded load is
    repeated by hour of the week. Raises ReplayError."""
    hours = _hours(course)
    if load == "flat":
        values = np.ones(len(course))
    elif load == "diurnal":
        phase = 2 * np.pi * (hours + utc_offset_h - DIURNAL_PEAK_HOUR) / 24
        values = 1 + DIURNAL_SWING * np.cos(phase)
    else:
        values = _recorded_load(load, hours)
    return Course(course.zone, course.start, course.step_s, course.grams_per_kwh, values)


def _hours(course: Course) -> Floats:
    """Hours since a Monday 00:00 UTC, of every step."""
    monday = datetime(1970, 1, 5, tzinfo=course.start.tzinfo)
    first = (course.start - monday).total_seconds()
    hours: Floats = (first + np.arange(len(course)) * course.step_s) / 3600
    return hours


def _even(recording: Recording) -> Floats:
    """The recording's values on an even grid of its step: means where it was faster, NaN where it has none."""
    count = round(recording.length / recording.step)
    sums, rows = np.zeros(count), np.zeros(count)
    for index, (time, grams) in enumerate(zip(recording.times, recording.grams_per_kwh, strict=True)):
        if grams is not None:
            place = int((time - recording.start) / recording.step)
            held = slice(place, place + max(1, round(recording.holds(index) / recording.step)))
            sums[held] += grams
            rows[held] += 1
    return np.where(rows > 0, sums / np.maximum(rows, 1), np.nan)


def _recorded_load(load: str, hours: Floats) -> Floats:
    """Mean requests a second by hour of the week of the recording, looked up for every step."""
    recording = read_load(load)  # requests a second
    monday = datetime(1970, 1, 5, tzinfo=recording.start.tzinfo)
    sums, counts = np.zeros(168), np.zeros(168)
    for time, value in zip(recording.times, recording.grams_per_kwh, strict=True):
        if value is not None:
            slot = int((time - monday).total_seconds() // 3600) % 168
            sums[slot] += value
            counts[slot] += 1
    if not sums.any():
        raise ReplayError(f"--load: {load} holds no requests; give a recording with some")
    means = np.where(counts > 0, sums / np.maximum(counts, 1), sums.sum() / counts.sum())
    rates: Floats = means[(hours.astype(np.int64)) % 168]
    return rates
