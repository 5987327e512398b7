"""Runs a course through the policy that serves, and through what it is compared with.

`simulate` calls `server.shaping.policy.decide` at every step, as the controller does, with the reading that the feed
would have given then. The comparisons need no state and are arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np

from energy.grid.memory import Memory
from energy.grid.nowcast import nowcast
from energy.grid.signal import Intensity
from models.manifest import OperatingPoint
from server.replay.course import Course, Floats
from server.shaping.policy import Inputs, PolicyState, decide
from server.shaping_settings import ShapingSettings

LIVE_MAX_AGE_S = 7200.0
HISTORY_DAYS = 28
HISTORY_MIN_WEEKS = 2


@dataclass(frozen=True)
class Faults:
    """What the feed does wrong: readings come `age_s` late, and every `outage_every_s` none comes for `outage_s`.

    Every week and a quarter of a day, so that outages meet every hour of the week: at the same one each time, the mean
    of that hour would never be known.
    """

    age_s: float = 0.0
    outage_s: float = 0.0
    outage_every_s: float = 7.25 * 86_400.0

    def out(self, elapsed_s: float) -> bool:
        """Whether the feed is dead so long after the start. The first period has none."""
        return elapsed_s >= self.outage_every_s and elapsed_s % self.outage_every_s < self.outage_s


@dataclass(frozen=True)
class Played:
    """What a policy did. All arrays have one entry a step: `level` of the dial (0 full quality, 1 cheapest allowed),
    `joules_per_1k` and `relative_accuracy` of the mean standard answer."""

    name: str
    level: Floats
    joules_per_1k: Floats
    relative_accuracy: Floats
    reasons: dict[str, int] = field(default_factory=dict)
    """How many steps each reason's code held."""

    def cut(self, begin: int, end: int) -> Played:
        """Steps `begin` to `end` alone."""
        return Played(
            self.name, self.level[begin:end], self.joules_per_1k[begin:end], self.relative_accuracy[begin:end]
        )


def simulate(
    course: Course,
    points: Sequence[OperatingPoint],
    settings: ShapingSettings,
    faults: Faults | None = None,
    name: str | None = None,
) -> Played:
    """Every step's dial under `settings`. `points` run from full quality to the cheapest."""
    feed = _Feed(course, faults or Faults())
    state = PolicyState()
    costs, accuracies = _costs(points), [point.relative_accuracy for point in points]
    place = {point.name: index for index, point in enumerate(points)}
    size = len(course)
    levels, joules, accuracy = np.empty(size), np.empty(size), np.empty(size)
    reasons: dict[str, int] = {}
    loads = course.load.tolist()
    total_j = 0.0
    for step in range(size):
        now = course.start + timedelta(seconds=step * course.step_s)
        reading = feed.reading(step)
        inputs = Inputs(now, loads[step - 1] if step else None, total_j, feed.expected(reading, now))
        state, decision = decide(state, reading, settings, step * course.step_s, points, inputs)
        at = place[decision.point]
        cost, right = costs[at], accuracies[at]
        if decision.split is not None:
            other, share = place[decision.split.point], decision.split.share
            cost += (costs[other] - cost) * share
            right += (accuracies[other] - right) * share
        levels[step], joules[step], accuracy[step] = state.level, cost, right
        total_j += cost * loads[step] * course.step_s / 1000
        said = decision.reason.partition(":")[0]
        reasons[said] = reasons.get(said, 0) + 1
    return Played(name or settings.policy, levels, joules, accuracy, reasons)


def fixed(course: Course, points: Sequence[OperatingPoint], level: Floats | float, name: str) -> Played:
    """A comparison between full quality and the cheapest of `points`, its `level` given for every step."""
    levels = np.broadcast_to(np.asarray(level, dtype=np.float64), (len(course),)).copy()
    costs = _costs(points)
    joules = costs[0] + (costs[-1] - costs[0]) * levels
    best, least = points[0].relative_accuracy, points[-1].relative_accuracy
    return Played(name, levels, joules, best + (least - best) * levels)


def oracle_level(course: Course, cheap_shares: Sequence[tuple[int, int, float]]) -> Floats:
    """The level that saves the most with hindsight: for each stretch (begin, end, share of its requests to be answered
    by the cheaper point) the dirtiest steps, the last of them in part."""
    level = np.zeros(len(course))
    for begin, end, share in cheap_shares:
        grams, load = np.nan_to_num(course.grams_per_kwh[begin:end]), course.load[begin:end]
        order = np.argsort(-grams, kind="stable")
        taken = np.cumsum(load[order])
        wanted = share * taken[-1]
        part = np.clip((wanted - (taken - load[order])) / np.maximum(load[order], 1e-12), 0, 1)
        level[begin + order] = part
    return level


class _Feed:
    """The reading that the ladder would give at a step, by the same memory and rungs."""

    def __init__(self, course: Course, faults: Faults) -> None:
        self._course, self._faults = course, faults
        self._grams = course.grams_per_kwh.tolist()
        self._late = round(faults.age_s / course.step_s)
        self._memory = Memory("replay", course.zone)
        self._guarded = faults.outage_s > 0 or self._late > 0 or any(value != value for value in self._grams)

    def reading(self, step: int) -> Intensity | None:
        course, memory = self._course, self._memory
        source = step - self._late
        elapsed_s = step * course.step_s
        alive = source >= 0 and not self._faults.out(elapsed_s) and self._grams[source] == self._grams[source]
        if alive:
            time = course.start + timedelta(seconds=source * course.step_s)
            live = Intensity(course.zone, "replay", time, self._grams[source], "live")
            if self._guarded:
                memory.accept(live, HISTORY_DAYS)
            return live
        now = course.start + timedelta(seconds=elapsed_s)
        return memory.cached(now, LIVE_MAX_AGE_S) or memory.hour_of_week_mean(now, HISTORY_DAYS, HISTORY_MIN_WEEKS)

    def expected(self, reading: Intensity | None, now: datetime) -> float | None:
        """What the ladder would expect of now by a late reading."""
        return None if reading is None else nowcast(reading, self._memory.mean_of, now)


def _costs(points: Sequence[OperatingPoint]) -> list[float]:
    """Joules per 1,000 answers of every point; where one was not measured, CPU-seconds stand in for all."""
    measured = [point.answer_joules_per_1k for point in points]
    if all(joules is not None for joules in measured):
        return [float(joules) for joules in measured if joules is not None]
    return [point.answer_cpu_seconds_per_1k for point in points]
