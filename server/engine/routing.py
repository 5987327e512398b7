"""What answers each class of requests for now: the point of the dial, as the engine follows it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.manifest import OperatingPoint
from server.engine.family import Family
from server.engine.runtime import Float32Array
from server.engine.scores import confidence
from server.shaping.policy import CLASSES, DialState, QualityClass


@dataclass(frozen=True, slots=True)
class Escalation:
    """Whom a cascade asks when its first variant is unsure, and when that is.

    `alone` is name and rank of the best point that is this variant without a cascade, where there is one and it is
    better than the cascade's: an answer that escalated is what that point gives.
    """

    variant: str
    temperature: float
    threshold: float
    alone: tuple[str, int] | None

    def doubts(self, logits: Float32Array) -> bool:
        """Whether the first variant's answer (shape [labels]) is not sure enough."""
        return confidence(logits, self.temperature) < self.threshold


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a class for now. `variant` is asked first, and alone unless there is an `escalation`. `saving` is
    how much more full quality would cost, as a share of this point (of the mean of its answers, where some escalate).
    """

    family: Family
    quality: QualityClass
    point: str
    rank: int
    variant: str
    reason: str
    saving: float
    escalation: Escalation | None
    counted: str | None = None
    """The counter of what took the class off the dial's point (`spike_overrides`, `latency_guarded`), None for the
    dial's own."""

    @property
    def avoids(self) -> str:
        """Why this point's joules are fewer."""
        return "spike" if self.counted == "spike_overrides" else "fallback"


class Router:
    """Chooses what answers a request: the dial's point for its class, unless the queue or the class's latency takes it
    off that. Raises KeyError if the dial names a point that the family does not have."""

    def __init__(self, family: Family, dial: DialState) -> None:
        self._dial = dial
        self._routes = {quality: _route(family, quality, *dial.answers(quality)) for quality in CLASSES}
        self._split = None
        if dial.split is not None:
            self._split = _route(family, "standard", dial.split.point, dial.reason_by_class["standard"])
        self._spike = None
        if dial.spike is not None:
            spike = _route(family, "standard", dial.spike, "load-spike")
            self._spike = replace(spike, counted="spike_overrides")
        self._steady: dict[str, Route | None] = {}

    def choose(self, quality: QualityClass, session: bytes, *, pressed: bool, guarded: bool) -> Route:
        """What answers a request of `session`. `pressed`: the queue endangers the latency objective; `guarded`: the
        class is too slow for cascades."""
        route = self._routes[quality]
        if quality == "standard":
            if self._split is not None and self._dial.split is not None and self._dial.split.takes(session):
                route = self._split
            if pressed and self._spike is not None and self._spike.rank > route.rank:
                return self._spike
        if guarded and route.escalation is not None:
            return self._without_cascade(route) or route
        return route

    def _without_cascade(self, route: Route) -> Route | None:
        """The next better point that is a variant alone."""
        key = f"{route.quality} {route.point}"
        if key not in self._steady:
            family = route.family
            better = (p.name for p in reversed(family.points[: route.rank]) if p.cascade is None)
            name = next(better, None)
            steady = None if name is None else _route(family, route.quality, name, "p99-guard")
            self._steady[key] = None if steady is None else replace(steady, counted="latency_guarded")
        return self._steady[key]


def _route(family: Family, quality: QualityClass, name: str, reason: str) -> Route:
    rank = family.rank(name)
    point = family.points[rank]
    saving = family.points[0].cpu_seconds_per_1k / point.cpu_seconds_per_1k - 1
    return Route(family, quality, name, rank, asked_first(point), reason, saving, _escalation(family, rank))


def asked_first(point: OperatingPoint) -> str:
    """The variant that every text of this point goes to."""
    return point.variant if point.cascade is None else point.cascade.first


def _escalation(family: Family, rank: int) -> Escalation | None:
    point = family.points[rank]
    cascade = point.cascade
    if cascade is None:
        return None
    alone = next(
        (
            (better.name, place)
            for place, better in enumerate(family.points[:rank])
            if better.cascade is None and better.variant == point.variant
        ),
        None,
    )
    return Escalation(point.variant, cascade.temperature, cascade.threshold, alone)
