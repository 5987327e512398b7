"""Which waiting jobs share the next batch. Pure state: no threads, no clock, no I/O.

A batch costs `run overhead + rows x longest` tokens of work: starting a run costs as much as some tokens, so a wider
batch pays until its padding outweighs that. All waiting jobs, in order of length, are cut into the runs of neighbours
that cost the least together (dynamic programming); the run that holds the oldest job goes first. So similar lengths
share a batch, and nobody is starved: a job waits for no batch but those that hold a job older than itself.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

# Neighbours of the oldest job, on each side, that are looked at. Those further off hardly move the cuts around it, and
# the work stays bounded however long the queue is.
HORIZON = 64


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of a batch.

    `max_tokens` bounds rows x longest (a single job may exceed it alone). `run_overhead_tokens` is what starting a run
    costs, in tokens of work (fitted over 1 to 32 rows of 8 to 64 tokens of int8 MiniLM-L6 on one VNNI core).
    """

    max_rows: int = 16
    max_tokens: int = 1024
    run_overhead_tokens: float = 16.0


@dataclass(slots=True)
class _Entry(Generic[T]):
    tokens: int
    order: int
    job: T

    def __lt__(self, other: _Entry[T]) -> bool:
        return (self.tokens, self.order) < (other.tokens, other.order)


class Lane(Generic[T]):
    """Jobs that may share a batch: one lane for each variant."""

    def __init__(self) -> None:
        self._entries: list[_Entry[T]] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def oldest_order(self) -> int:
        """Arrival number of the oldest waiting job. Raises ValueError when nothing waits."""
        return min(entry.order for entry in self._entries)

    def add(self, job: T, tokens: int, order: int) -> None:
        """Queue a job of `tokens` tokens; `order` is its arrival number."""
        insort(self._entries, _Entry(tokens, order, job))

    def take(self, limits: BatchLimits) -> list[T]:
        """Remove and return the next batch, shortest job first; empty if nothing waits."""
        if not self._entries:
            return []
        entries = self._entries
        oldest = min(range(len(entries)), key=lambda index: entries[index].order)
        low = max(0, oldest - HORIZON)
        near = entries[low : oldest + HORIZON + 1]
        start, stop = _cut_around(oldest - low, [entry.tokens for entry in near], limits)
        batch = [entry.job for entry in near[start:stop]]
        del entries[low + start : low + stop]
        return batch


def _cut_around(wanted: int, lengths: list[int], limits: BatchLimits) -> tuple[int, int]:
    """Cut the rising `lengths` into the cheapest batches; returns [start, stop) of the one that holds `wanted`."""
    overhead, max_rows, max_tokens = limits.run_overhead_tokens, limits.max_rows, limits.max_tokens
    cheapest = [0.0]  # cost of the first n jobs, for each n
    starts: list[int] = []  # where the last of their batches starts
    for index, longest in enumerate(lengths):
        first = max(0, index + 1 - max(1, min(max_rows, max_tokens // longest)))
        best_start, best_cost = index, cheapest[index] + overhead + longest
        for start in range(first, index):
            cost = cheapest[start] + overhead + (index + 1 - start) * longest
            if cost < best_cost:
                best_start, best_cost = start, cost
        starts.append(best_start)
        cheapest.append(best_cost)
    stop = len(lengths)
    while starts[stop - 1] > wanted:
        stop = starts[stop - 1]
    return starts[stop - 1], stop
