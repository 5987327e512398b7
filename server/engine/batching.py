"""Which waiting jobs share the next batch. Pure state: no threads, no clock, no I/O.

A batch costs `rows x longest` tokens, so the jobs in it should be of similar length; and nobody may be starved for
being of an unusual one. Jobs wait in order of length; a batch is a run of neighbours in that order. The one taken
has the highest efficiency, `useful tokens / (run overhead + rows x longest)`: starting a run costs as much as some
tokens, so a wider batch pays until its padding outweighs that. A job that was passed over too often must be in the
next batch.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of a batch.

    `max_tokens` bounds rows x longest (a single job may exceed it alone). `max_passed_over` bounds how many batches
    of its lane may be formed while a job waits; from then on each next batch holds the oldest such job.
    `run_overhead_tokens` is what starting a run costs, in tokens of work (fitted over 1 to 32 rows of 8 to 64 tokens
    of int8 MiniLM-L6 on one VNNI core; at 64 clients 16 also measured cheapest among 8, 16, 30, 60 and 200).
    """

    max_rows: int = 16
    max_tokens: int = 1024
    max_passed_over: int = 8
    run_overhead_tokens: float = 16.0


@dataclass(slots=True)
class _Entry(Generic[T]):
    tokens: int
    order: int
    batches_before: int
    job: T

    def __lt__(self, other: _Entry[T]) -> bool:
        return (self.tokens, self.order) < (other.tokens, other.order)


class Lane(Generic[T]):
    """Jobs that may share a batch: one lane for each variant."""

    def __init__(self) -> None:
        self._entries: list[_Entry[T]] = []
        self._added = 0
        self._batches = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def oldest_order(self) -> int:
        """Arrival number of the oldest waiting job. Raises ValueError when nothing waits."""
        return min(entry.order for entry in self._entries)

    def add(self, job: T, tokens: int, order: int) -> None:
        """Queue a job of `tokens` tokens; `order` is its arrival number."""
        insort(self._entries, _Entry(tokens, order, self._batches, job))

    def discard(self, gone: Callable[[T], bool]) -> list[T]:
        """Remove and return the jobs for which `gone` is true (their client left, their time is up).

        Each job is asked about once: the answer may change while this runs.
        """
        left: list[T] = []
        kept: list[_Entry[T]] = []
        for entry in self._entries:
            if gone(entry.job):
                left.append(entry.job)
            else:
                kept.append(entry)
        self._entries = kept
        return left

    def take(self, limits: BatchLimits) -> list[T]:
        """Remove and return the next batch, shortest job first; empty if nothing waits."""
        if not self._entries:
            return []
        start, stop = self._choose(limits)
        batch = [entry.job for entry in self._entries[start:stop]]
        del self._entries[start:stop]
        self._batches += 1
        return batch

    def _choose(self, limits: BatchLimits) -> tuple[int, int]:
        """The neighbours [start, stop) with the most useful tokens for what the run costs."""
        entries = self._entries
        anchor = self._overdue_anchor(limits.max_passed_over)
        first_stop = 1 if anchor is None else anchor + 1
        last_stop = len(entries) if anchor is None else min(len(entries), anchor + limits.max_rows)
        useful_before = [0, *accumulate(entry.tokens for entry in entries)]
        best = (0, 1) if anchor is None else (anchor, anchor + 1)
        best_efficiency = 0.0
        for stop in range(first_stop, last_stop + 1):
            longest = entries[stop - 1].tokens
            rows = max(1, min(limits.max_rows, limits.max_tokens // longest, stop))
            while rows:
                start = stop - rows
                if anchor is not None and start > anchor:
                    break
                cost = limits.run_overhead_tokens + rows * longest
                efficiency = (useful_before[stop] - useful_before[start]) / cost
                if efficiency > best_efficiency:
                    best, best_efficiency = (start, stop), efficiency
                rows //= 2  # halves are enough to tell whether a narrower batch pays
        return best

    def _overdue_anchor(self, max_passed_over: int) -> int | None:
        """Index of the oldest job that was passed over too often, if there is one."""
        overdue = [
            (entry.order, index)
            for index, entry in enumerate(self._entries)
            if self._batches - entry.batches_before >= max_passed_over
        ]
        return min(overdue)[1] if overdue else None
