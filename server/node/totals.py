"""Sums replicas' cumulative snapshots into figures of the node that survive replicas and node alike. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from energy.ledger import Account
from server.node.wire import BatchKey, BatchTotals, Histogram, RequestKey, RequestTotals, Snapshot

VERSION = 1
_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class TotalsError(ValueError):
    """Stored totals are not what they should be."""


@dataclass(frozen=True, slots=True)
class Increase:
    """What a replica counted between two of its snapshots."""

    model: str
    requests: Mapping[RequestKey, RequestTotals]
    counters: Mapping[str, int]
    avoided_cpu_ns: Mapping[str, int]
    histograms: Mapping[str, Histogram]
    batches: Mapping[BatchKey, BatchTotals]

    @property
    def cpu_ns(self) -> int:
        """CPU time that the requests owe."""
        return sum(totals.cpu_ns for totals in self.requests.values())


def increase(new: Snapshot, old: Snapshot | None) -> Increase:
    """The difference of two snapshots of one instance; `old` None stands for its start.

    A figure that went back (a fault of the replica) counts as unchanged.
    """
    if old is None:
        return Increase(new.model, new.requests, new.counters, new.avoided_cpu_ns, new.histograms, new.batches)
    return Increase(
        model=new.model,
        requests=_grown(new.requests, old.requests, _requests),
        counters=_subtract(new.counters, old.counters),
        avoided_cpu_ns=_subtract(new.avoided_cpu_ns, old.avoided_cpu_ns),
        histograms=_grown(new.histograms, old.histograms, _histogram),
        batches=_grown(new.batches, old.batches, _batches),
    )


def _grown(new: Mapping[_K, _V], old: Mapping[_K, _V], subtract: Callable[[_V, _V], _V | None]) -> dict[_K, _V]:
    """What changed, as differences; `subtract` says None for what did not."""
    grown: dict[_K, _V] = {}
    for key, value in new.items():
        before = old.get(key)
        change = value if before is None else subtract(value, before)
        if change is not None:
            grown[key] = change
    return grown


def _subtract(new: Mapping[Any, int], old: Mapping[Any, int]) -> dict[Any, int]:
    return {key: value - old.get(key, 0) for key, value in new.items() if value > old.get(key, 0)}


def _requests(new: RequestTotals, old: RequestTotals) -> RequestTotals | None:
    if (new.count, new.cpu_ns) == (old.count, old.cpu_ns):
        return None
    return RequestTotals(
        max(new.count - old.count, 0), max(new.cpu_ns - old.cpu_ns, 0), _subtract(new.buckets, old.buckets)
    )


def _histogram(new: Histogram, old: Histogram) -> Histogram | None:
    if new.count == old.count:
        return None
    return Histogram(max(new.count - old.count, 0), max(new.total - old.total, 0), _subtract(new.buckets, old.buckets))


def _batches(new: BatchTotals, old: BatchTotals) -> BatchTotals | None:
    if (new.texts, new.cpu_ns) == (old.texts, old.cpu_ns):
        return None
    return BatchTotals(max(new.texts - old.texts, 0), max(new.cpu_ns - old.cpu_ns, 0))


@dataclass
class ServingTotals:
    """Cumulative figures of all replicas that ever reported."""

    requests: dict[Account, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    batches: dict[BatchKey, BatchTotals] = field(default_factory=dict)
    late_records: int = 0
    """Windows closed without a live replica's record."""
    bad_records: int = 0
    """Datagrams that could not be read."""
    unmeasured_cpu_ns: int = 0
    """Claims for CPU time of windows that were closed, or never measured, when the record came."""
    dropped_cpu_ns: int = 0
    """Claims beyond the CPU time that was seen, carried on for a window and then dropped."""

    def add(self, change: Increase) -> None:
        """Add what a replica counted."""
        for key, totals in change.requests.items():
            if totals.count:
                account = Account(change.model, *key)
                self.requests[account] = self.requests.get(account, 0) + totals.count
        for name, amount in change.counters.items():
            self.counters[name] = self.counters.get(name, 0) + amount
        for name, histogram in change.histograms.items():
            mine = self.histograms.setdefault(name, Histogram())
            mine.count += histogram.count
            mine.total += histogram.total
            for index, count in histogram.buckets.items():
                mine.buckets[index] = mine.buckets.get(index, 0) + count
        for size, batches in change.batches.items():
            sized = self.batches.setdefault(size, BatchTotals())
            sized.texts += batches.texts
            sized.cpu_ns += batches.cpu_ns

    @property
    def standard_texts(self) -> int:
        """Texts of the class standard that came to the engine."""
        return sum(
            count for who, count in self.requests.items() if who.quality == "standard" and who.outcome != "refused"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as plain lists and maps."""
        return {
            "version": VERSION,
            "requests": [[*account, count] for account, count in self.requests.items()],
            "counters": self.counters,
            "histograms": {name: [h.count, h.total, list(h.buckets.items())] for name, h in self.histograms.items()},
            "batches": [[*key, b.texts, b.cpu_ns] for key, b in self.batches.items()],
            "late_records": self.late_records,
            "bad_records": self.bad_records,
            "unmeasured_cpu_ns": self.unmeasured_cpu_ns,
            "dropped_cpu_ns": self.dropped_cpu_ns,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> ServingTotals:
        """Turn `to_json` back. Raises TotalsError."""
        try:
            if tree["version"] != VERSION:
                raise TotalsError(f"totals.version: not {VERSION}; move the file away to begin anew")
            return cls(
                requests={Account(*row[:5]): int(row[5]) for row in tree["requests"]},
                counters={str(name): int(value) for name, value in tree["counters"].items()},
                histograms={
                    str(name): Histogram(int(count), int(total), {int(i): int(n) for i, n in buckets})
                    for name, (count, total, buckets) in tree["histograms"].items()
                },
                # Absent in files of releases that did not keep them.
                batches={
                    BatchKey(str(variant), int(size)): BatchTotals(int(texts), int(cpu_ns))
                    for variant, size, texts, cpu_ns in tree.get("batches", [])
                },
                late_records=int(tree["late_records"]),
                bad_records=int(tree["bad_records"]),
                unmeasured_cpu_ns=int(tree["unmeasured_cpu_ns"]),
                dropped_cpu_ns=int(tree["dropped_cpu_ns"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            if isinstance(error, TotalsError):
                raise
            raise TotalsError(f"totals: {error!r}; move the file away to begin anew") from None
