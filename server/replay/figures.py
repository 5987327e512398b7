"""What a played policy comes to: grams, kWh, quality, switches, and what of it timing saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from models.manifest import OperatingPoint
from server.replay.course import Course, Floats
from server.replay.simulate import Played, at_level, costs_of, rearranged
from server.shaping_settings import ShapingSettings

JOULES_PER_KWH = 3_600_000.0
HOUR_S = 3600.0
ROUNDING = 1e-9
"""Of all grams, what is no saving but the last digits of a sum."""


@dataclass(frozen=True)
class Figures:
    """Of one policy over a course. Shares are 0 to 1."""

    policy: str
    gco2e: float
    kwh: float
    full_share: float
    """Share of the standard answers at full quality (in between two points: by how far the dial had moved)."""
    relative_accuracy: float
    """Mean over the answers, as a share of the teacher's."""
    worst_hour_accuracy: float
    """The lowest mean of an hour."""
    switches_per_day: float
    """How often a steady session is moved from one side of the dial to the other and back: the dial's way, end to end
    counted as one."""
    timing_gco2e: float
    """Grams below a carbon-blind mix of the same quality: what choosing the hours saved."""
    of_oracle: float
    """`timing_gco2e` as a share of what hindsight saves with the same answers in every calendar year; NaN where
    hindsight saves nothing."""
    full_share_by_year: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable; NaN becomes None."""
        tree = asdict(self)
        return {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in tree.items()}


def figures_of(course: Course, played: Played, costs: Sequence[float]) -> Figures:
    """The figures. `costs` are those of the points that the dial walks over (`dial_costs`).

    Steps without a recorded intensity count for energy and quality, and for no grams.
    """
    grams, load = np.nan_to_num(course.grams_per_kwh), course.load
    joules = load * course.step_s * played.joules_per_1k / 1000
    gco2e = float((joules * grams).sum() / JOULES_PER_KWH)
    saved = _timing(course, at_level(played.level, costs))
    best = _timing(course, at_level(hindsight(course, played.level, costs), costs))
    full = {name: 1 - _mean(played.level[begin:end], load[begin:end]) for begin, end, name in years_of(course)}
    return Figures(
        policy=played.name,
        gco2e=gco2e,
        kwh=float(joules.sum() / JOULES_PER_KWH),
        full_share=1 - _mean(played.level, load),
        relative_accuracy=_mean(played.relative_accuracy, load),
        worst_hour_accuracy=_worst_hour(course, played.relative_accuracy),
        switches_per_day=float(np.abs(np.diff(played.level)).sum() / course.days),
        timing_gco2e=saved,
        of_oracle=saved / best if best > ROUNDING * gco2e else float("nan"),
        full_share_by_year=full,
    )


def hindsight(course: Course, level: Floats, costs: Sequence[float]) -> Floats:
    """Level at which the same answers would have been given in every calendar year by who knew it beforehand."""
    years = ((course.cut(begin, end), level[begin:end]) for begin, end, _ in years_of(course))
    return np.concatenate([rearranged(year, part, costs) for year, part in years])


def blind(course: Course, values: Floats) -> Floats:
    """For every step the mean over the answers of its calendar year: the same answers without a look at the grid."""
    years = years_of(course)
    means = [_mean(values[begin:end], course.load[begin:end]) for begin, end, _ in years]
    return np.repeat(means, [end - begin for begin, end, _ in years])


def years_of(course: Course) -> list[tuple[int, int, str]]:
    """First step, end and name of every calendar year of the course. A year of less than a quarter's length belongs to
    its neighbour: an oracle of a few days is none."""
    year = course.times().astype("datetime64[Y]")
    least, size = 91 * 86_400 / course.step_s, len(course)
    bounds = [0]
    for start in (np.nonzero(np.diff(year.astype(np.int64)))[0] + 1).tolist():
        if start - bounds[-1] >= least and size - start >= least:
            bounds.append(start)
    return [(begin, end, str(year[(begin + end) // 2])) for begin, end in pairwise([*bounds, size])]


def _timing(course: Course, joules_per_1k: Floats) -> float:
    """Grams that these answers save against the same ones spread over each calendar year alike."""
    weights = course.load * course.step_s * np.nan_to_num(course.grams_per_kwh)
    return float((weights * (blind(course, joules_per_1k) - joules_per_1k)).sum() / 1000 / JOULES_PER_KWH)


def _mean(values: Floats, weights: Floats) -> float:
    total = weights.sum()
    return float((values * weights).sum() / total) if total > 0 else float(values.mean())


def _worst_hour(course: Course, accuracy: Floats) -> float:
    steps = max(1, round(HOUR_S / course.step_s))
    hours = len(course) // steps
    if hours == 0:
        return float(accuracy.min())
    return float(accuracy[: hours * steps].reshape(hours, steps).mean(axis=1).min())


def allowed(points: Sequence[OperatingPoint], settings: ShapingSettings) -> tuple[OperatingPoint, ...]:
    """The points that the dial walks over: from full quality to the cheapest that standard requests may have."""
    last = len(points) - 1
    if settings.fallback_point is not None:
        last = next((i for i, point in enumerate(points) if point.name == settings.fallback_point), 0)
    floor = settings.floors.standard
    return tuple(points[: 1 + next((i for i in range(last, 0, -1) if points[i].relative_accuracy >= floor), 0)])


def dial_costs(points: Sequence[OperatingPoint], settings: ShapingSettings) -> list[float]:
    """Joules per 1,000 answers of these (CPU-seconds where joules were not measured)."""
    return costs_of(allowed(points, settings))
