"""What a played policy comes to: grams, kWh, quality, switches, and what of it timing saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from models.manifest import OperatingPoint
from server.replay.course import Course, Floats
from server.replay.simulate import Played, oracle_level
from server.shaping_settings import ShapingSettings

JOULES_PER_KWH = 3_600_000.0
HOUR_S = 3600.0


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
    """`timing_gco2e` as a share of what hindsight saves at the same quality in every calendar year; NaN where
    hindsight saves nothing."""
    full_share_by_year: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable; NaN becomes None."""
        tree = asdict(self)
        return {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in tree.items()}


def figures_of(course: Course, played: Played, swing_joules: float) -> Figures:
    """The figures. `swing_joules` is full quality's joules per 1,000 answers less the cheapest allowed point's.

    Steps without a recorded intensity count for energy and quality, and for no grams.
    """
    grams, load = np.nan_to_num(course.grams_per_kwh), course.load
    requests = load * course.step_s
    joules = requests * played.joules_per_1k / 1000
    years = years_of(course)
    cheap = [(begin, end, _mean(played.level[begin:end], load[begin:end])) for begin, end, _ in years]
    saved = _timing(grams, requests, played.level, cheap, swing_joules)
    best = _timing(grams, requests, oracle_level(course, cheap), cheap, swing_joules)
    return Figures(
        policy=played.name,
        gco2e=float((joules * grams).sum() / JOULES_PER_KWH),
        kwh=float(joules.sum() / JOULES_PER_KWH),
        full_share=1 - _mean(played.level, load),
        relative_accuracy=_mean(played.relative_accuracy, load),
        worst_hour_accuracy=_worst_hour(course, played.relative_accuracy),
        switches_per_day=float(np.abs(np.diff(played.level)).sum() / course.days),
        timing_gco2e=saved,
        of_oracle=saved / best if best > 0 else float("nan"),
        full_share_by_year={name: 1 - share for (_, _, name), (_, _, share) in zip(years, cheap, strict=True)},
    )


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


def _timing(
    grams: Floats, requests: Floats, level: Floats, cheap: Sequence[tuple[int, int, float]], swing_joules: float
) -> float:
    """Grams that `level` saves against the mean level of each stretch."""
    total = 0.0
    for begin, end, share in cheap:
        weights = requests[begin:end] * grams[begin:end]
        total += float((weights * (level[begin:end] - share)).sum())
    return total * swing_joules / 1000 / JOULES_PER_KWH


def _mean(values: Floats, weights: Floats) -> float:
    total = weights.sum()
    return float((values * weights).sum() / total) if total > 0 else float(values.mean())


def _worst_hour(course: Course, accuracy: Floats) -> float:
    steps = max(1, round(HOUR_S / course.step_s))
    hours = len(course) // steps
    if hours == 0:
        return float(accuracy.min())
    return float(accuracy[: hours * steps].reshape(hours, steps).mean(axis=1).min())


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
