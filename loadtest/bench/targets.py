"""What is aimed at, and whether it was reached. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from loadtest.bench.plan import REALISTIC
from loadtest.bench.results import CacheRound, Load, Rest, Result, Spread, against_best_peer, over_floor, spread
from loadtest.peers.ours import EDGE, HAPROXY

PROTOTYPE_UNBATCHED_FLOOR = 3.9
PROTOTYPE_AT_RATE = {HAPROXY: {5.0: 20.4, 50.0: 6.8}, EDGE: {5.0: 5.4, 50.0: 4.8}}
"""CPU-seconds per 1,000 at a rate, idling included. Source: a bare prototype of each mode with Ray's lean settings, on
2 cores of a Zen 4 machine where texts one at a time cost the runtime 3.9 CPU-seconds per 1,000. Another machine is
slower or faster at everything, so what is compared is the ratio to that floor."""


@dataclass(frozen=True)
class Verdict:
    """One line of the judgement."""

    name: str
    limit: float
    reached: Spread | None
    at_most: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the median is within the limit; None if it was not measured."""
        if self.reached is None:
            return None
        return self.reached.median <= self.limit if self.at_most else self.reached.median >= self.limit

    def __str__(self) -> str:
        wanted = f"at {'most' if self.at_most else 'least'} {self.limit:g} wanted"
        if self.reached is None:
            return f"{self.name}: not measured, {wanted}"
        return f"{self.name}: {self.reached}, {wanted}: {'met' if self.met else 'MISSED'}"


def judge(result: Result) -> list[Verdict]:
    """Every target. Those at the most clients are at 64 in the full plan."""
    most = max(result.plan.clients)
    return [
        *_loaded(result, most),
        *_peers(result, most),
        *_resting(result),
        *_rates(result),
        *_cache(result, most),
    ]


def _loaded(result: Result, most: int) -> list[Verdict]:
    def latency(name: str, clients: int, ratio: Callable[[Load], float]) -> Spread | None:
        return spread(ratio(load) for load in result.loads(name, REALISTIC, clients))

    verdicts = [
        Verdict(f"{HAPROXY}, {most} clients, x floor", 1.20, over_floor(result, HAPROXY, REALISTIC, most)),
        Verdict(f"{EDGE}, {most} clients, x floor", 1.10, over_floor(result, EDGE, REALISTIC, most)),
    ]
    for name in (HAPROXY, EDGE):
        verdicts += [
            Verdict(f"{name}, 1 client, x unbatched floor", 1.35, over_floor(result, name, REALISTIC, 1)),
            Verdict(
                f"{name}, {most} clients, p99 / p50", 2.0, latency(name, most, lambda one: one.p99_ms / one.p50_ms)
            ),
            Verdict(
                f"{name}, 1 client, p99 / the bare runtime's p99",
                2.0,
                latency(name, 1, lambda one: one.p99_ms / (one.bare_p99_ms or one.p99_ms)),
            ),
        ]
    return verdicts


def _peers(result: Result, most: int) -> list[Verdict]:
    verdicts = []
    for name in (HAPROXY, EDGE):
        cpu = against_best_peer(result, name, REALISTIC, most, lambda one: fmean(one.over_floor), min)
        rate = against_best_peer(result, name, REALISTIC, most, lambda one: one.requests_per_second, max)
        verdicts += [
            Verdict(f"{name}, {most} clients, CPU-seconds / the best peer's", 0.6, cpu),
            Verdict(f"{name}, {most} clients, requests/s / the best peer's", 1.7, rate, at_most=False),
        ]
    return verdicts


def _resting(result: Result) -> list[Verdict]:
    def of(name: str, figure: Callable[[Rest], float]) -> Spread | None:
        return spread(figure(rest) for rest in result.rests if rest.contestant == name)

    return [
        Verdict(f"{HAPROXY}, idle CPU-seconds a minute", 3.0, of(HAPROXY, lambda one: one.idle_cpu_seconds_per_minute)),
        Verdict(f"{EDGE}, idle CPU-seconds a minute", 0.3, of(EDGE, lambda one: one.idle_cpu_seconds_per_minute)),
        Verdict(f"{EDGE}, memory MB", 250, of(EDGE, lambda one: one.pss_mb)),
        Verdict(f"{EDGE}, seconds to ready", 2.0, of(EDGE, lambda one: one.ready_s)),
    ]


def _rates(result: Result) -> list[Verdict]:
    return [
        Verdict(
            f"{name}, {rate:g} requests/s, idling included, x unbatched floor",
            round(limit / PROTOTYPE_UNBATCHED_FLOOR, 2),
            spread(one.over_floor for one in result.rates if (one.contestant, one.rate_per_s) == (name, rate)),
        )
        for name, limits in PROTOTYPE_AT_RATE.items()
        for rate, limit in limits.items()
    ]


def _cache(result: Result, most: int) -> list[Verdict]:
    def of(name: str, figure: Callable[[CacheRound], float]) -> Spread | None:
        return spread(figure(one) for one in result.cache if one.contestant == name)

    verdicts = []
    for name in (HAPROXY, EDGE):
        cost = of(name, lambda one: one.hit_cpu_seconds_per_1k)
        grpc = spread(
            one.grpc_hit_cpu_seconds_per_1k
            for one in result.cache
            if one.contestant == name and one.grpc_hit_cpu_seconds_per_1k is not None
        )
        saved = of(name, lambda one: one.saved / one.hit_share if one.hit_share else 0.0)
        verdicts += [
            Verdict(f"{name}, {most} clients, CPU-s / 1,000 cache hits", 0.35, cost),
            Verdict(f"{name}, {most} clients, CPU-s / 1,000 cache hits over gRPC", 0.8, grpc),
            Verdict(f"{name}, repeated texts: CPU saved / share of hits", 0.9, saved, at_most=False),
        ]
    return verdicts


def missed(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those that were measured and not met."""
    return [one for one in verdicts if one.met is False]
