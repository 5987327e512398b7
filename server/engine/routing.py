"""What answers each class of requests for now: the point of the dial, as the engine follows it."""

from __future__ import annotations

from dataclasses import dataclass

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


def routes(family: Family, dial: DialState) -> dict[QualityClass, Route]:
    """What answers each class. Raises KeyError if the dial names a point that the family does not have."""
    return {quality: _route(family, quality, *dial.answers(quality)) for quality in CLASSES}


def split_route(family: Family, dial: DialState) -> Route | None:
    """What answers the standard sessions on the cheaper side, while the dial stands between two points. Raises KeyError
    if the dial names a point that the family does not have."""
    if dial.split is None:
        return None
    return _route(family, "standard", dial.split.point, dial.reason_by_class["standard"])


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
