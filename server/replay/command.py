"""`jouleserve replay`: what would these settings have done? Recorded grid and load through the policy that serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.manifest import OperatingPoint
from models.store import Store
from server.replay import report
from server.replay.baselines import standing
from server.replay.course import Course, course_of
from server.replay.errors import ReplayError
from server.replay.figures import Figures, allowed, dial_costs, figures_of
from server.replay.frontier import Trial, sweep
from server.replay.simulate import Faults, Played, simulate
from server.replay.sources import read_grid
from server.settings import ModelSettings, Settings
from server.shaping_settings import ShapingSettings

SMALL_ACCURACY = 0.95
"""Relative accuracy of the made-up cheaper point of `--small-share`."""
FULL_JOULES_PER_1K = 1000.0
"""Of the made-up full point: a joule an answer."""


def made_up_points(small_share: float) -> tuple[OperatingPoint, ...]:
    """Two points, the second at `small_share` of the first's joules. Raises ReplayError."""
    if not 0 < small_share < 1:
        raise ReplayError(f"--small-share: {small_share:g} is not between 0 and 1; 0.5 means half the joules")
    return (_point("full", 1.0, 1.0), _point("small", SMALL_ACCURACY, small_share))


def _point(name: str, accuracy: float, share: float) -> OperatingPoint:
    joules = FULL_JOULES_PER_1K * share
    return OperatingPoint(
        name=name,
        variant=name,
        accuracy=accuracy,
        accuracy_lower=accuracy,
        relative_accuracy=accuracy,
        cpu_seconds_per_1k=share,
        joules_per_1k=joules,
    )


def family_points(model: ModelSettings) -> tuple[OperatingPoint, ...]:
    """The operating points of the family's newest sound version. Raises StoreError."""
    version, _ = Store(model.store).open_newest_sound(model.family, model.version)
    return version.manifest.points


def replay(
    course: Course,
    points: Sequence[OperatingPoint],
    settings: Sequence[ShapingSettings],
    faults: Faults | None = None,
) -> tuple[list[Played], list[Figures]]:
    """Every policy of `settings`, and beside them what they are compared with at the first one's quality, that of each
    calendar year."""
    played = [simulate(course, points, one, faults) for one in settings]
    costs = dial_costs(points, settings[0])
    beside = standing(course, allowed(points, settings[0]), played[0].level)
    return played, [figures_of(course, one, costs) for one in (*played, *beside)]


def run(
    *,
    grid: str,
    load: str,
    rate: float,
    points: Sequence[OperatingPoint],
    settings: Sequence[ShapingSettings],
    faults: Faults,
    utc_offset_h: float,
    sweeping: bool,
    want: float | None,
    out: Path | None,
    plot: Path | None,
    known: Settings,
) -> tuple[Course, list[Figures], list[Trial]]:
    """All that the command does but print. `want` is the share at full quality that a sweep looks for. Raises
    ReplayError."""
    if plot is not None:
        report.check_plot()
    zone, recording = read_grid(grid, known)
    course = course_of(zone, recording, load, utc_offset_h)
    if load in ("flat", "diurnal"):
        course = replace(course, load=course.load * rate)
    names = [point.name for point in points]
    for one in settings:
        for field, name in (("fallback_point", one.fallback_point), ("pin_point", one.pin_point)):
            if name is not None and name not in names:
                raise ReplayError(f"shaping.{field}: no operating point '{name}'; use one of {', '.join(names)}")
    played, figures = replay(course, points, settings, faults)
    frontier = sweep(course, points, settings[0], faults, want) if sweeping else []
    if out is not None:
        swept = [{"settings": changes, **one.to_dict()} for changes, one in frontier]
        report.write_json(out, course, figures, sweep=swept)
    if plot is not None:
        report.plot(plot, course, played, [one for _, one in frontier])
    return course, figures, frontier
