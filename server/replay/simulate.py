"""Runs a course through the policy that serves, and through what it is compared with.

`simulate` calls `server.shaping.policy.decide` at every step, as the controller does, with the reading that the feed
would have given then. The comparisons need no state and are arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np

from energy.grid.ladder import Limits
from energy.grid.memory import Memory
from energy.grid.nowcast import nowcast
from energy.grid.signal import Intensity
from models.manifest import OperatingPoint
from server.replay.course import Course, Floats
from server.shaping.policy import Inputs, PolicyState, decide
from server.shaping_settings import ShapingSettings


@dataclass(frozen=True)
class Faults:
    """What the feed does wrong: readings come `age_s` late, and every `outage_every_s` none comes for `outage_s`; and
    what the ladder makes of it by its `limits`.

    Every week and a quarter of a day, so that outages meet every hour of the week: at the same one each time, the mean
    of that hour would never be known.
    """

    age_s: float = 0.0
    outage_s: float = 0.0
    outage_every_s: float = 7.25 * 86_400.0
    limits: Limits = field(default_factory=Limits)

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
    costs, accuracies = costs_of(points), [point.relative_accuracy for point in points]
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
    """A comparison over the dial of `points`, its `level` given for every step."""
    levels = np.broadcast_to(np.asarray(level, dtype=np.float64), (len(course),)).copy()
    accuracies = [point.relative_accuracy for point in points]
    return Played(name, levels, at_level(levels, costs_of(points)), at_level(levels, accuracies))


def at_level(level: Floats, figures: Sequence[float]) -> Floats:
    """What the points' figures come to where the dial stands: it walks over them in turn."""
    found: Floats = np.interp(level * (len(figures) - 1), np.arange(len(figures)), figures)
    return found


def rearranged(course: Course, level: Floats, costs: Sequence[float]) -> Floats:
    """Level at which hindsight would have given the same answers: as many by each point (of as many as `costs`), the
    dirtiest steps' by the cheapest."""
    last = len(costs) - 1
    grams, load = np.nan_to_num(course.grams_per_kwh), course.load
    order = np.argsort(-grams, kind="stable")
    taken = np.cumsum(load[order])
    found = np.zeros(len(course))
    for index in range(1, last + 1):
        # Of each step's answers, those by this point or a cheaper one.
        wanted = (np.clip(level * last - (index - 1), 0, 1) * load).sum()
        found[order] += np.clip((wanted - (taken - load[order])) / np.maximum(load[order], 1e-12), 0, 1)
    return found / max(last, 1)


class _Feed:
    """The reading that the ladder would give at a step, by the same memory and rungs."""

    def __init__(self, course: Course, faults: Faults) -> None:
        self._course, self._faults = course, faults
        self._grams = course.grams_per_kwh.tolist()
        self._late = round(faults.age_s / course.step_s)
        self._stale = self._late * course.step_s > faults.limits.live_max_age_s
        self._memory = Memory("replay", course.zone)
        self._guarded = faults.outage_s > 0 or self._late > 0 or any(value != value for value in self._grams)

    def reading(self, step: int) -> Intensity | None:
        course, memory, limits = self._course, self._memory, self._faults.limits
        source = step - self._late
        elapsed_s = step * course.step_s
        dead = self._stale or source < 0 or self._faults.out(elapsed_s)
        if not dead and self._grams[source] == self._grams[source]:
            time = course.start + timedelta(seconds=source * course.step_s)
            live = Intensity(course.zone, "replay", time, self._grams[source], "live")
            if self._guarded:
                memory.accept(live, limits.history_days)
            return live
        now = course.start + timedelta(seconds=elapsed_s)
        usual = memory.hour_of_week_mean(now, limits.history_days, limits.history_min_weeks)
        return memory.cached(now, limits.cached_max_age_s) or usual

    def expected(self, reading: Intensity | None, now: datetime) -> float | None:
        """What the ladder would expect of now by a late reading."""
        return None if reading is None else nowcast(reading, self._memory.mean_of, now)


def costs_of(points: Sequence[OperatingPoint]) -> list[float]:
    """Joules per 1,000 answers of every point; where one was not measured, CPU-seconds stand in for all."""
    measured = [point.answer_joules_per_1k for point in points]
    if all(joules is not None for joules in measured):
        return [float(joules) for joules in measured if joules is not None]
    return [point.answer_cpu_seconds_per_1k for point in points]
