"""Which open jobs get texts computed now. State without I/O: the clock and the outlook are passed in."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from energy.grid.windows import Period, Plan, Work, plan
from server.jobs.job import Job

SAFETY = 1.5
"""A job is planned to take so many times what its texts are expected to take."""
PACE_SHARE = 0.05
"""How fast the expected time of a unit follows what was measured."""
FIRST_PACE_S = 2e-4
"""Real seconds a unit, until it is measured: some five times what a small model takes."""
CLOCK_SET_BACK_S = 600.0
REST_S = 0.25
PLANNING_SHARE = 0.05
"""Of a core, that planning may take: with ten thousand open jobs every other second is enough."""


@dataclass
class OpenJob:
    """A job that is neither done nor cancelled. `pending` are the texts that nobody computes, None if not read yet."""

    job: Job
    pending: deque[int] | None = None

    @property
    def units_left(self) -> int:
        """Work that is not done."""
        return self.job.units - self.job.done_units


@dataclass
class Turn:
    """What a job may use of the period that is now, in seconds; `urgent` if it has no time to wait for room."""

    job_id: str
    seconds: float
    urgent: bool


class Planned(NamedTuple):
    """A plan, whose turn it makes, and the CPU time that it took."""

    plan: Plan
    turns: deque[Turn]
    cpu_s: float


@dataclass
class Schedule:
    """The open jobs, and the plan in force. `pace_s` is the time a unit takes by the grid's clock, `rest_s` real
    seconds until the next plan at least."""

    margin_s: float
    pace_s: float
    jobs: dict[str, OpenJob] = field(default_factory=dict)
    plan: Plan | None = None
    turns: deque[Turn] = field(default_factory=deque)
    rest_s: float = REST_S

    def planned(self, jobs: Sequence[OpenJob], periods: Sequence[Period], now_s: float) -> Planned:
        """A plan of these jobs, for `take_up`. Changes nothing, so that a thread of its own may do it: ten thousand
        jobs take a tenth of a second."""
        began_s = time.thread_time()
        works = [self._work(one, now_s) for one in jobs if one.units_left > 0]
        made = plan(works, periods if works else (), now_s)
        return Planned(made, deque(self._turns(works, made, now_s)), time.thread_time() - began_s)

    def take_up(self, planned: Planned) -> None:
        """Put a new plan in force."""
        self.plan, self.turns = planned.plan, planned.turns
        self.rest_s = max(REST_S, planned.cpu_s / PLANNING_SHARE)

    def _work(self, one: OpenJob, now_s: float) -> Work:
        job = one.job
        deadline_s = job.deadline_s - self.margin_s
        if job.submitted_s > now_s + CLOCK_SET_BACK_S:
            deadline_s = now_s  # the clock was set back, as by a replay that starts over: there is nothing to wait for
        return Work(job.id, deadline_s, SAFETY * self.pace_s * one.units_left)

    def _turns(self, works: Iterable[Work], made: Plan, now_s: float) -> Iterable[Turn]:
        """Whose turn is now, nearest deadline first."""
        for work in sorted(works, key=lambda work: work.deadline_s):
            seconds = made.runs_now(work.name)
            if seconds > 0:
                last = made.stretches[work.name][-1:]
                waits = bool(last) and last[0].period.start_s > now_s
                tight = work.deadline_s - now_s <= 2 * work.seconds
                yield Turn(work.name, seconds, work.name in made.short_s or (tight and not waits))

    def next_turn(self) -> Turn | None:
        """The first turn whose job has texts that nobody computes; None if nothing is to run now."""
        while self.turns:
            turn = self.turns[0]
            one = self.jobs.get(turn.job_id)
            # Texts that somebody computes may come back: the next plan sees to them.
            if one is not None and turn.seconds > 0 and (one.pending is None or one.pending):
                return turn
            self.turns.popleft()
        return None

    def took(self, turn: Turn, units: int) -> None:
        """So much of a turn was given out."""
        turn.seconds -= SAFETY * self.pace_s * units

    def measured(self, seconds: float, units: float) -> None:
        """So many units took so long by the grid's clock, waiting for room included."""
        self.pace_s += PACE_SHARE * (seconds / units - self.pace_s)

    def planned_s(self, job_id: str) -> float | None:
        """When a job is to begin or go on; None if it is not planned."""
        if self.plan is None or job_id not in self.plan.stretches or job_id not in self.jobs:
            return None
        return self.plan.starts_s(job_id)
