"""Which waiting jobs share the next batch. Pure state: no threads, no I/O; the clock's reading is passed in.

**Shape.** A batch costs `run overhead + own tokens + padding share x padding` tokens of work: starting a run costs as
much as some tokens, and a padded token a share of a real one (all of it in a plain graph, little where the graph skips
padding), so a wider batch pays until its padding outweighs that. The oldest jobs of a lane, in order of length, are cut
into the runs of neighbours that cost the least together (dynamic programming); one of these is the next batch. (Other
rules for which one were simulated - cheapest first, sweeps over the lengths, two workers from both ends, rounds - and
none saved more than 0.3 % of the work; several cost a quarter more latency at the 99th percentile.)

**Order.** The batch is the one that holds the *head*: the oldest job of all lanes, or a younger one whose deadline is
so close that it would be missed if the head came first. No two batches in a row pass the oldest job over, so a job
that finds k older ones waiting is in one of the next 2(k+1) batches, whatever arrives later, in whichever lane.

**Time.** How long a batch takes is predicted from the jobs' weights and what such weights took before. A job that
cannot be answered before its deadline any more is given back as late instead of being run; a batch that would make its
head miss its deadline or the latency objective is made smaller, if that helps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from math import ceil, sqrt
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

# The oldest jobs that are cut into batches, in full batches. Newer ones wait, or those whose lengths are rare would be
# passed over for long by newcomers of common lengths (simulated at 64 clients, p99 over p50 and cost, all jobs = 2.06
# and 1: 2.5 batches 1.86 and 1.01, 2 batches 1.74 and 1.01, 1.5 batches 1.57 and 1.03). It bounds the work, too.
REACH = 2.5
NO_DEADLINE_NS = 1 << 62
# Below this share, padding is as good as free, and batches are as wide as they may.
LEAST_PADDING_SHARE = 0.01
# How fast the prediction follows what is measured.
PACE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of a batch.

    `max_tokens` bounds rows x longest (a single job may exceed it alone). `run_overhead_tokens` is what starting a run
    costs, in tokens of work (fitted over 1 to 32 rows of 6 to 48 tokens of int8 MiniLM-L6 on one VNNI core: 13 for six
    layers, 18 for two). `objective_ns` is the latency that the slowest percent of the answers should keep, None for
    none. A lone job that is expected to take at most `inline_ns` is run where it arrives, without waking a worker.
    """

    max_rows: int = 16
    max_tokens: int = 1024
    run_overhead_tokens: float = 16.0
    objective_ns: int | None = None
    inline_ns: int = 0


class Waiting(NamedTuple, Generic[T]):
    """A job in a lane; lanes keep them in order of length, then arrival."""

    tokens: int
    order: int
    weight: float
    arrived_ns: int
    deadline_ns: int
    job: T


class Taken(NamedTuple, Generic[K, T]):
    """The next batch (its lane, the jobs, shortest first), and jobs too late to be run. Either may be empty."""

    key: K | None
    jobs: list[T]
    late: list[T]


class Lane(Generic[T]):
    """Jobs that may share a batch: one lane for each variant. A padded token costs `padding_share` of a real one."""

    def __init__(self, padding_share: float = 1.0) -> None:
        self._padding_share = padding_share
        self._by_order: dict[int, Waiting[T]] = {}  # oldest first
        self._deadlines: list[tuple[int, int]] = []  # a heap of (deadline, order); may name jobs that are gone
        self.weight = 0.0

    def __len__(self) -> int:
        return len(self._by_order)

    @property
    def oldest(self) -> Waiting[T]:
        """The job that has waited longest. Raises StopIteration when nothing waits."""
        return next(iter(self._by_order.values()))

    @property
    def most_pressing(self) -> Waiting[T] | None:
        """The job with the nearest deadline; None if no job has one."""
        heap = self._deadlines
        while heap:
            waiting = self._by_order.get(heap[0][1])
            if waiting is not None:
                return waiting
            heappop(heap)
        return None

    def add(self, waiting: Waiting[T]) -> None:
        """Queue a job; its `order` is larger than that of every other."""
        self._by_order[waiting.order] = waiting
        self.weight += waiting.weight
        if waiting.deadline_ns < NO_DEADLINE_NS:
            heappush(self._deadlines, (waiting.deadline_ns, waiting.order))

    def remove(self, batch: list[Waiting[T]]) -> list[T]:
        """Take these jobs."""
        for waiting in batch:
            del self._by_order[waiting.order]
            self.weight -= waiting.weight
        return [waiting.job for waiting in batch]

    def cut(self, head: Waiting[T], limits: BatchLimits) -> list[Waiting[T]]:
        """The batch that holds `head` in the cheapest cut of the oldest jobs, shortest first."""
        reach = ceil(REACH * limits.max_rows)
        oldest = list(islice(self._by_order.values(), reach))
        if head.order > oldest[-1].order:
            oldest.append(head)
        oldest.sort()
        lengths = [waiting.tokens for waiting in oldest]
        start, stop = cheapest_batch(bisect_left(oldest, head[:2]), lengths, limits, self._padding_share)
        return oldest[start:stop]


def fit(batch: list[Waiting[T]], head: Waiting[T], weight: float) -> list[Waiting[T]]:
    """A part of `batch` that holds `head` and weighs at most `weight`, the longest jobs left out first."""
    place = bisect_left(batch, head[:2])
    start, stop = 0, len(batch)
    total = sum(waiting.weight for waiting in batch)
    while total > weight and stop - start > 1:
        if stop - 1 > place:
            stop -= 1
            total -= batch[stop].weight
        else:
            total -= batch[start].weight
            start += 1
    return batch[start:stop]


@dataclass(slots=True)
class Pace:
    """Nanoseconds of a batch for each unit of its jobs' weight (None: unmeasured), and how long a batch takes."""

    ns_per_weight: float | None = None
    batch_ns: float = 0.0

    def measured(self, ns: int, weight: float) -> None:
        """A batch of this weight took so long."""
        if self.ns_per_weight is None:
            self.ns_per_weight, self.batch_ns = ns / weight, float(ns)
        else:
            self.ns_per_weight += PACE_SHARE * (ns / weight - self.ns_per_weight)
            self.batch_ns += PACE_SHARE * (ns - self.batch_ns)

    def doubted(self) -> None:
        """A job was given up because of this prediction. Nothing is measured by that, so that a prediction which is
        wrong must fade by itself."""
        if self.ns_per_weight is not None:
            self.ns_per_weight *= 1 - PACE_SHARE


@dataclass(slots=True)
class Batcher(Generic[K, T]):
    """The lanes, and whose turn it is."""

    lanes: dict[K, Lane[T]] = field(default_factory=dict)
    paces: dict[K, Pace] = field(default_factory=dict)
    waiting: int = 0
    _arrivals: int = 0
    _passed_over: bool = False

    def add(
        self,
        key: K,
        job: T,
        *,
        tokens: int,
        weight: float,
        now_ns: int,
        deadline_ns: int = NO_DEADLINE_NS,
        padding_share: float = 1.0,
    ) -> None:
        """Queue a job of `tokens` tokens whose share of a batch weighs `weight` (about its nanoseconds). What padding
        costs is the lane's: the first job says it."""
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(padding_share)
            if key not in self.paces:
                self._meet(key)
        self._arrivals += 1
        self.waiting += 1
        lane.add(Waiting(tokens, self._arrivals, weight, now_ns, deadline_ns, job))

    def pace(self, key: K) -> float | None:
        """Nanoseconds for each unit of weight in this lane; None if nothing was measured yet."""
        found = self.paces.get(key)
        return None if found is None else found.ns_per_weight

    def backlog_ns(self) -> float:
        """What all waiting jobs will take of one worker; a weight counts as its nanoseconds until it is measured."""
        return sum(lane.weight * (self.paces[key].ns_per_weight or 1.0) for key, lane in self.lanes.items())

    def take(self, now_ns: int, limits: BatchLimits) -> Taken[K, T]:
        """Remove and return the next batch."""
        late = self._drop_late(now_ns)
        if not self.lanes:
            return Taken(None, [], late)
        key = oldest_key = min(self.lanes, key=lambda one: self.lanes[one].oldest.order)
        head = oldest = self.lanes[key].oldest
        if not self._passed_over:
            key, head = self._pressing(now_ns, key, head)
        lane = self.lanes[key]
        batch = lane.cut(head, limits)
        allowed = self._allowed_weight(key, head, now_ns, limits.objective_ns)
        if allowed is not None:
            batch = fit(batch, head, allowed)
        jobs = lane.remove(batch)
        self._passed_over = oldest_key in self.lanes and oldest.order in self.lanes[oldest_key]._by_order
        self._removed(key, len(jobs))
        return Taken(key, jobs, late)

    def _pressing(self, now_ns: int, key: K, head: Waiting[T]) -> tuple[K, Waiting[T]]:
        """The job that must go before the oldest, or the oldest: a deadline that two more batches would break."""
        lead_ns = 2 * max(pace.batch_ns for pace in self.paces.values())
        for other, lane in self.lanes.items():
            waiting = lane.most_pressing
            if waiting is not None and waiting.deadline_ns < min(head.deadline_ns, now_ns + lead_ns):
                key, head = other, waiting
        return key, head

    def _allowed_weight(self, key: K, head: Waiting[T], now_ns: int, objective_ns: int | None) -> float | None:
        """The most that the head's batch may weigh if the head is to be in time; None if anything goes, because there
        is time, nothing was measured yet, or even the head alone would be late."""
        pace = self.paces[key].ns_per_weight
        due_ns = head.deadline_ns if objective_ns is None else min(head.deadline_ns, head.arrived_ns + objective_ns)
        if pace is None or due_ns >= NO_DEADLINE_NS:
            return None
        allowed = (due_ns - now_ns) / pace
        return allowed if allowed >= head.weight else None

    def _drop_late(self, now_ns: int) -> list[T]:
        """Remove the jobs whose deadlines cannot be met: by less than half of what they would take alone, as the
        prediction is a mean and hardly any run takes half of it."""
        late: list[T] = []
        for key in list(self.lanes):
            lane, pace = self.lanes[key], self.paces[key]
            dropped = 0
            while (waiting := lane.most_pressing) is not None:
                least_ns = 0.5 * waiting.weight * (pace.ns_per_weight or 0.0)
                if now_ns + least_ns <= waiting.deadline_ns:
                    break
                late += lane.remove([waiting])
                dropped += 1
                if now_ns <= waiting.deadline_ns:
                    pace.doubted()
            if dropped:
                self._removed(key, dropped)
        return late

    def _removed(self, key: K, count: int) -> None:
        self.waiting -= count
        if not len(self.lanes[key]):
            del self.lanes[key]

    def _meet(self, key: K) -> None:
        """A new lane's pace; those of the few last lanes are remembered while they are empty."""
        for old in [one for one in self.paces if one not in self.lanes][:-MAX_IDLE_PACES]:
            del self.paces[old]
        self.paces[key] = Pace()


MAX_IDLE_PACES = 16


def expected_ns(backlog_ns: float, workers: int, batch_ns: float, *, busy: bool) -> float:
    """How long a job that came now would wait for its answer: what waits already, half a batch that runs, its own."""
    return backlog_ns / workers + (1.5 if busy else 1.0) * batch_ns


def cheapest_batch(wanted: int, lengths: list[int], limits: BatchLimits, padding_share: float = 1.0) -> tuple[int, int]:
    """Cut the rising `lengths` into the cheapest batches; returns [start, stop) of the one that holds `wanted`.

    The cost obeys the quadrangle inequality, so that the last batch of the first n + 1 jobs starts no earlier than that
    of the first n; this leaves few starts to try.
    """
    max_rows, max_tokens = limits.max_rows, limits.max_tokens
    # Own tokens cost the same however they are cut, which leaves overhead and padding to weigh. Against what waits now,
    # the overhead would count 1 / share; but jobs that are left find mates among the newcomers (simulated at 16 and 64
    # clients with shares of 0.08 to 0.42: the root is 0.2 to 2 % cheaper than either the whole or nothing).
    overhead = limits.run_overhead_tokens / sqrt(max(padding_share, LEAST_PADDING_SHARE))
    cheapest = [0.0]  # cost of the first n jobs, for each n
    starts: list[int] = []  # where the last of their batches starts
    best_start = 0
    for index, longest in enumerate(lengths):
        first = index + 1 - (min(max_rows, max_tokens // longest) or 1)
        if first > best_start:
            best_start = first
        work = (index + 1 - best_start) * longest
        best_cost = cheapest[best_start] + work
        for start in range(best_start + 1, index + 1):
            work -= longest
            cost = cheapest[start] + work
            # Of equals the latest: what does not fill a batch is left at the far end, and the oldest of many texts of
            # one length, which comes first, is in a full one.
            if cost <= best_cost:
                best_start, best_cost = start, cost
        starts.append(best_start)
        cheapest.append(best_cost + overhead)
    stop = len(lengths)
    while starts[stop - 1] > wanted:
        stop = starts[stop - 1]
    return starts[stop - 1], stop
