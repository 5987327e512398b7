"""When work that can wait should run: the cleanest hours before its deadline, by what is expected of the grid.

Pure. Times are seconds since the epoch by the grid's clock (a replay has its own); work can be broken off and taken up
again, as jobs are between texts and a compile is between passes.

Every work may use all of the time from now to its deadline, so that the sets of periods which works may use lie within
one another, from the nearest deadline to the farthest. On such a chain the greedy choice is the best one: the work with
the nearest deadline takes the cleanest time before it, then the next one takes the cleanest that is left. The sum of
seconds times intensity is least then, and whatever fits before its deadline at all is planned before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of time and the intensity that is expected of it, gCO2e/kWh; None if nothing is known."""

    start_s: float
    end_s: float
    grams_per_kwh: float | None


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done by when, and how many seconds it is expected to take."""

    name: str
    deadline_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """Seconds of a period that a work is to use."""

    period: Period
    seconds: float


@dataclass(frozen=True)
class Plan:
    """`stretches` of each work, in order of time. `short_s` has the works that do not fit before their deadlines, with
    the seconds that are missing: those run at once, and will be late."""

    now_s: float
    stretches: Mapping[str, tuple[Stretch, ...]]
    short_s: Mapping[str, float]

    def runs_now(self, name: str) -> float:
        """Seconds that this work is to use in the period that is now; 0 while it is to wait."""
        missing = self.short_s.get(name, 0.0)
        first = self.stretches[name][:1]
        if first and first[0].period.start_s <= self.now_s:
            return first[0].seconds + missing
        return missing

    def starts_s(self, name: str) -> float:
        """When this work is to begin, or to go on."""
        first = self.stretches[name][:1]
        return self.now_s if not first or name in self.short_s else max(self.now_s, first[0].period.start_s)

    def changes_s(self) -> float | None:
        """When the next period begins in which another choice may be due; None if everything runs now or is done."""
        starts = [stretches[-1].period.end_s for stretches in self.stretches.values() if stretches]
        starts += [one.period.start_s for stretches in self.stretches.values() for one in stretches]
        return min((start for start in starts if start > self.now_s), default=None)


def plan(works: Iterable[Work], periods: Sequence[Period], now_s: float) -> Plan:
    """Choose the cleanest time before each deadline. Of equally clean periods the earlier is taken, and one of which
    nothing is known only after all others.

    `periods` follow one another from now on (what lies before now does not count); past the last one nothing is known,
    either. Works are named apart.
    """
    order = sorted(works, key=lambda work: work.deadline_s)
    farthest = order[-1].deadline_s if order else now_s
    slots = _slots(periods, now_s, farthest)
    free: list[tuple[float, float, int]] = []  # a heap of (intensity, start, index)
    left_s = [slot.end_s - max(slot.start_s, now_s) for slot in slots]
    chosen: dict[str, tuple[Stretch, ...]] = {}
    short: dict[str, float] = {}
    reached = 0
    for work in order:
        while reached < len(slots) and slots[reached].start_s < work.deadline_s:
            grams = slots[reached].grams_per_kwh
            heappush(free, (inf if grams is None else grams, slots[reached].start_s, reached))
            reached += 1
        taken, missing = _take(work, free, slots, left_s)
        chosen[work.name] = tuple(sorted(taken, key=lambda one: one.period.start_s))
        if missing > 0:
            short[work.name] = missing
    return Plan(now_s, chosen, short)


def _slots(periods: Sequence[Period], now_s: float, until_s: float) -> list[Period]:
    """The periods from now on, and what is left until the farthest deadline as one of which nothing is known."""
    slots = [period for period in periods if period.end_s > now_s]
    known_s = slots[-1].end_s if slots else now_s
    if known_s < until_s:
        slots.append(Period(known_s, until_s, None))
    return slots


def _take(
    work: Work, free: list[tuple[float, float, int]], slots: Sequence[Period], left_s: list[float]
) -> tuple[list[Stretch], float]:
    """Stretches for one work, and the seconds that found no place."""
    taken: list[Stretch] = []
    later: list[tuple[float, float, int]] = []
    missing = work.seconds
    while missing > 0 and free:
        entry = heappop(free)
        index = entry[2]
        # Only the part before the deadline counts, and what is planned in the period already comes before it.
        usable_s = left_s[index] - max(0.0, slots[index].end_s - work.deadline_s)
        seconds = min(missing, usable_s)
        if seconds > 0:
            taken.append(Stretch(slots[index], seconds))
            left_s[index] -= seconds
            missing -= seconds
        if left_s[index] > 0:
            later.append(entry)
    for entry in later:
        heappush(free, entry)
    return taken, missing if missing > 1e-9 else 0.0
