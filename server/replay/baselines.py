"""What the policies are compared with: fixed ones, trailing medians, hindsight, and forecasts as they were issued."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from datetime import datetime

import numpy as np

from energy.grid.replay import Forecasts
from models.manifest import OperatingPoint
from server.replay.course import Course, Floats
from server.replay.figures import blind, hindsight
from server.replay.simulate import Played, costs_of, fixed


def standing(course: Course, points: Sequence[OperatingPoint], level: Floats) -> list[Played]:
    """Always full, always the cheapest of `points`, a carbon-blind mix and the yearly oracle: the last two with the
    answers that the dial at `level` gives in each calendar year, as a policy that keeps more quality in one year than
    in another could else beat hindsight."""
    costs = costs_of(points)
    dial = fixed(course, points, level, "carbon-blind mix")
    return [
        fixed(course, points, 0.0, "always full"),
        fixed(course, points, 1.0, "always small"),
        Played(
            dial.name,
            blind(course, dial.level),
            blind(course, dial.joules_per_1k),
            blind(course, dial.relative_accuracy),
        ),
        fixed(course, points, hindsight(course, level, costs), "oracle"),
    ]


def trailing_level(course: Course, days: float, full_share: float) -> Floats:
    """All or nothing by rank in the trailing `days`, without hysteresis or correction."""
    samples, ordered = max(1, round(days * 86_400 / course.step_s)), list[float]()
    level = np.zeros(len(course))
    values = course.grams_per_kwh.tolist()
    for step, value in enumerate(values):
        if value != value:
            continue
        insort(ordered, value)
        if step >= samples and (old := values[step - samples]) == old:
            ordered.pop(bisect_left(ordered, old))
        rank = (bisect_left(ordered, value) + bisect_right(ordered, value)) / (2 * len(ordered))
        level[step] = rank > full_share
    return level


def forecast_level(
    course: Course, forecasts: Forecasts, full_share: float, past_days: float, horizon_h: int = 96
) -> Floats:
    """All or nothing by rank among the trailing `past_days` and the newest forecast's coming hours (each once).

    `past_days` 0 looks ahead only. Before the first forecast, and where it has run out, the past alone counts.
    """
    per_hour = max(1, round(3600 / course.step_s))
    past = round(past_days * 24)
    hourly = course.grams_per_kwh[::per_hour]
    issues = sorted(forecasts)
    level = np.zeros(len(course))
    for hour, value in enumerate(hourly):
        now = course.start.timestamp() + hour * 3600
        ahead: Sequence[float] = ()
        if (place := bisect_right(issues, now, key=datetime.timestamp)) > 0:
            issued = issues[place - 1]
            begun = int((now - issued.timestamp()) // 3600)
            ahead = forecasts[issued][begun:horizon_h]
        seen = np.concatenate([hourly[max(0, hour - past) : hour + 1], ahead])
        rank = ((seen < value).sum() + (seen == value).sum() / 2) / len(seen)
        level[hour * per_hour : (hour + 1) * per_hour] = rank > full_share
    return level
