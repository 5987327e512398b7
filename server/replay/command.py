"""`jouleserve replay`: what would these settings have done? Recorded grid and load through the policy that serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from models.manifest import OperatingPoint
from models.store import Store
from server.replay import report
from server.replay.baselines import standing
from server.replay.course import Course, course_of
from server.replay.errors import ReplayError
from server.replay.figures import Figures, figures_of
from server.replay.simulate import Faults, Played, simulate
from server.replay.sources import read_grid
from server.settings import ModelSettings, Settings, ShapingSettings

SECONDS_PER_HOUR = 3600.0
SMALL_ACCURACY = 0.95
"""Relative accuracy of the made-up cheaper point of `--small-share`."""
FULL_JOULES_PER_1K = 1000.0
"""Of the made-up full point: a joule an answer."""
SWEEP_SHARES = tuple(round(0.1 * step, 1) for step in range(11))
SWEEP_QUANTILES = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
BAND = 0.9
"""`clean_below` of a sweep's thresholds, as a share of `dirty_above`."""


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
    """Every policy of `settings`, and beside them what they are compared with at the first one's quality."""
    played = [simulate(course, points, one, faults) for one in settings]
    swing = swing_joules(points, settings[0])
    figures = [figures_of(course, one, swing) for one in played]
    beside = standing(course, allowed(points, settings[0]), figures[0].full_share)
    return played, figures + [figures_of(course, one, swing) for one in beside]


def allowed(points: Sequence[OperatingPoint], settings: ShapingSettings) -> tuple[OperatingPoint, OperatingPoint]:
    """Full quality and the cheapest point that standard requests may be answered by."""
    last = len(points) - 1
    if settings.fallback_point is not None:
        last = next((i for i, point in enumerate(points) if point.name == settings.fallback_point), 0)
    floor = settings.floors.standard
    return points[0], next((points[i] for i in range(last, 0, -1) if points[i].relative_accuracy >= floor), points[0])


def swing_joules(points: Sequence[OperatingPoint], settings: ShapingSettings) -> float:
    """What the dial moves from end to end, joules per 1,000 answers (CPU-seconds where joules were not measured)."""
    best, least = allowed(points, settings)
    joules = best.answer_joules_per_1k, least.answer_joules_per_1k
    if joules[0] is not None and joules[1] is not None:
        return joules[0] - joules[1]
    return best.answer_cpu_seconds_per_1k - least.answer_cpu_seconds_per_1k


def sweep(
    course: Course, points: Sequence[OperatingPoint], base: ShapingSettings
) -> list[tuple[dict[str, float], Figures]]:
    """The frontier of `base`'s policy: what is varied, and what came of it, from cleanest to best quality. Raises
    ReplayError for a policy that has no threshold."""
    swing = swing_joules(points, base)
    found = [
        (changes, figures_of(course, simulate(course, points, changed(base, **changes)), swing))
        for changes in _variations(course, base)
    ]
    return sorted(found, key=lambda pair: pair[1].full_share)


def _variations(course: Course, base: ShapingSettings) -> list[dict[str, float]]:
    if base.policy == "percentile":
        return [{"full_share": share} for share in SWEEP_SHARES]
    if base.policy == "threshold":
        above = [round(float(grams)) for grams in np.nanquantile(course.grams_per_kwh, SWEEP_QUANTILES)]
        return [
            {"dirty_above_grams_per_kwh": grams, "clean_below_grams_per_kwh": round(grams * BAND)}
            for grams in sorted(set(above))
            if grams > 0
        ]
    raise ReplayError(f"--sweep: policy '{base.policy}' has no threshold to vary; take percentile or threshold")


def changed(base: ShapingSettings, **changes: object) -> ShapingSettings:
    """The settings with `changes`, validated. Raises ReplayError."""
    try:
        return ShapingSettings.model_validate(base.model_dump() | changes)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ReplayError(f"shaping.{where}: {first['msg']}" if where else first["msg"]) from None


def settings_for(frontier: Sequence[tuple[dict[str, float], Figures]], full_share: float) -> str:
    """The line that names the settings whose quality comes closest to `full_share`."""
    changes, figures = min(frontier, key=lambda pair: abs(pair[1].full_share - full_share))
    words = " ".join(f"shaping.{key}={value:g}" for key, value in changes.items())
    return f"for {full_share:.0%} at full quality: jouleserve tune {words} (gave {figures.full_share:.1%})"


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
    out: Path | None,
    plot: Path | None,
    known: Settings,
) -> tuple[Course, list[Figures], list[tuple[dict[str, float], Figures]]]:
    """All that the command does but print. Raises ReplayError."""
    if plot is not None:
        report.check_plot()
    zone, recording = read_grid(grid, known)
    course = course_of(zone, recording, load, utc_offset_h)
    if load in ("flat", "diurnal"):
        course = replace(course, load=course.load * rate)
    for one in settings:
        allowed_names = [point.name for point in points]
        for name in (one.fallback_point, one.pin_point):
            if name is not None and name not in allowed_names:
                raise ReplayError(f"shaping: no operating point '{name}'; use one of {', '.join(allowed_names)}")
    played, figures = replay(course, points, settings, faults)
    frontier = sweep(course, points, settings[0]) if sweeping else []
    if out is not None:
        swept = [{"settings": changes, **one.to_dict()} for changes, one in frontier]
        report.write_json(out, course, figures, sweep=swept)
    if plot is not None:
        report.plot(plot, course, played, [one for _, one in frontier])
    return course, figures, frontier
