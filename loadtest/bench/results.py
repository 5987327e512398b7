"""What was measured. Plain values; JSON is `dataclasses.asdict` of `Result`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from loadtest.bench.plan import Plan
from loadtest.floor import Floor


@dataclass(frozen=True)
class Load:
    """One contestant under one load."""

    contestant: str
    mix: str
    clients: int
    cpu_seconds_per_1k: float
    """Of its whole process tree, per 1,000 answers with status 200."""
    over_floor: list[float]
    """Of each slice, the same over the floor's right before and after it: the batched floor, or for one client the
    unbatched one."""
    requests_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    bare_p99_ms: float | None
    """The bare runtime's p99 for single texts in the same minutes; None for more than one client."""
    replies: int
    failures: dict[int, int] = field(default_factory=dict)
    by_process: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """Everybody once."""

    loads: list[Load]


@dataclass(frozen=True)
class Rest:
    """One contestant when nothing is asked, after it has been warm."""

    contestant: str
    ready_s: float
    start_cpu_seconds: float
    idle_cpu_seconds_per_minute: float
    pss_mb: float
    """Memory of the tree, shared pages counted once (PSS), millions of bytes."""
    by_process: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AtRate:
    """One contestant at a fixed low rate; its idling is in the figure."""

    contestant: str
    rate_per_s: float
    cpu_seconds_per_1k: float
    over_floor: float
    """The same over the unbatched floor's right before and after."""
    p50_ms: float
    p99_ms: float
    failures: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CacheRound:
    """Our server with its cache on, at the most clients: CPU-seconds per 1,000 of each run."""

    contestant: str
    unique_cpu_seconds_per_1k: float
    repeated_cpu_seconds_per_1k: float
    hit_share: float
    """Of the repeated run, from `/metrics`; equal requests in flight count as hits."""
    hit_cpu_seconds_per_1k: float
    """When every request is a hit."""
    grpc_hit_cpu_seconds_per_1k: float | None = None
    """The same over gRPC; None where it is not measured."""

    @property
    def saved(self) -> float:
        """Share of CPU-seconds that repetition saved."""
        return 1 - self.repeated_cpu_seconds_per_1k / self.unique_cpu_seconds_per_1k


@dataclass
class Result:
    """The whole run."""

    machine: dict[str, Any]
    plan: Plan
    ours: tuple[str, ...]
    absent: dict[str, str] = field(default_factory=dict)
    """Contestants that could not take part, or not to the end, and why."""
    floors: dict[str, Floor] = field(default_factory=dict)
    """Of each mix of texts, measured whole before the rounds."""
    rounds: list[Round] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)
    rates: list[AtRate] = field(default_factory=list)
    cache: list[CacheRound] = field(default_factory=list)
    wall_s: float = 0.0

    def contestants(self) -> list[str]:
        """Everybody who was measured, in the order in which they were."""
        return list(dict.fromkeys(load.contestant for one in self.rounds for load in one.loads))

    def loads(self, contestant: str, mix: str, clients: int) -> list[Load]:
        """Those runs of all rounds."""
        wanted = (contestant, mix, clients)
        return [
            load for one in self.rounds for load in one.loads if (load.contestant, load.mix, load.clients) == wanted
        ]


@dataclass(frozen=True)
class Spread:
    """A figure over rounds."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} - {self.most:.2f})"


def spread(values: Iterable[float]) -> Spread | None:
    """Median and range; None for no values."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found)) if found else None


def over_floor(result: Result, contestant: str, mix: str, clients: int) -> Spread | None:
    """CPU-seconds over those of the floor beside them, every slice of every round."""
    return spread(ratio for load in result.loads(contestant, mix, clients) for ratio in load.over_floor)


def against_best_peer(
    result: Result,
    contestant: str,
    mix: str,
    clients: int,
    figure: Callable[[Load], float],
    best: Callable[[Iterable[float]], float],
) -> Spread | None:
    """The figure over the best peer's of the same round; rounds without a peer are left out."""
    ratios = []
    for one in result.rounds:
        loads = [load for load in one.loads if (load.mix, load.clients) == (mix, clients)]
        peers = [figure(load) for load in loads if load.contestant not in result.ours and not load.failures]
        own = [figure(load) for load in loads if load.contestant == contestant]
        if own and peers:
            ratios.append(own[0] / best(peers))
    return spread(ratios)
