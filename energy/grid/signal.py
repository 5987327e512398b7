"""Typed grid events: readings, the errors a provider may raise, and the protocol that providers follow.

An intensity is the grid's average (not marginal), location-based carbon intensity in gCO2e per kWh.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, get_args

Kind = Literal["live", "cached", "forecast", "hour_of_week_mean", "static", "replay"]
Measure = Literal["average", "marginal"]
"""Of all that is generated, or of what one kWh more would take. Never mixed: grams are booked by averages alone."""

MAX_GRAMS_PER_KWH = 1500.0
"""Readings are clamped to this. Lignite alone comes to about 1,200 over its life cycle."""
ABSURD_GRAMS_PER_KWH = 3000.0
"""Beyond this, or below zero, a reading is a fault and not a dirty grid."""
FUTURE_TOLERANCE_S = 300.0
"""How far a reading may lie ahead of the clock: clocks differ, and periods are named by their start."""


class GridError(Exception):
    """A provider gave no usable reading. `transient` says whether trying again shortly may help."""

    transient = False


class Unreachable(GridError):
    """No answer: connection refused, name not found, too slow."""

    transient = True


class ProviderFailed(GridError):
    """The provider answered 5xx."""

    transient = True


class Throttled(GridError):
    """429. `retry_after_s` is what the provider asked for, None if it did not say."""

    transient = True

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Refused(GridError):
    """The provider answered 4xx: asking the same again will not help. `status` is 0 where nobody was asked."""

    def __init__(self, message: str, status: int = 0, body: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class Malformed(GridError):
    """The body is not what the contract says: HTML, truncated, fields missing or of the wrong type."""

    transient = True


class Implausible(GridError):
    """A number that no grid has, or a leap that no grid makes."""


class Stale(GridError):
    """The newest reading is too old to count as now."""


class FutureDated(GridError):
    """The reading lies ahead of the clock."""


class NoData(GridError):
    """The provider works and has no value for now (a gap in a recording, a zone without recent data)."""


class WrongZone(GridError):
    """The answer is about another zone, measure or unit than was asked for."""


@dataclass(frozen=True, slots=True)
class Intensity:
    """One reading: the mean over the period that starts at `time` (aware, UTC)."""

    zone: str
    provider: str
    time: datetime
    grams_per_kwh: float
    kind: Kind
    estimated: bool = False
    """The provider's own estimate or ours, not a measured mix."""
    issued: datetime | None = None
    """When a forecast was issued; None for what is no forecast."""
    measure: Measure = "average"

    def age_s(self, now: datetime) -> float:
        """Seconds from the period's start to `now`."""
        return (now - self.time).total_seconds()

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable form; `from_dict` reads it."""
        return {
            "zone": self.zone,
            "provider": self.provider,
            "time": format_utc(self.time),
            "grams_per_kwh": self.grams_per_kwh,
            "kind": self.kind,
            "estimated": self.estimated,
            "issued": None if self.issued is None else format_utc(self.issued),
            "measure": self.measure,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Intensity:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            zone=str(data["zone"]),
            provider=str(data["provider"]),
            time=parse_utc(data["time"]),
            grams_per_kwh=plausible(float(data["grams_per_kwh"])),
            kind=_kind(data["kind"]),
            estimated=bool(data["estimated"]),
            issued=None if data.get("issued") is None else parse_utc(data["issued"]),
            measure=_measure(data.get("measure", "average")),
        )


class GridProvider(Protocol):
    """A source of readings. One file per provider; the ladder adds caching, guards and fall-backs."""

    @property
    def name(self) -> str:
        """Short name, e.g. `uk`."""

    @property
    def zone(self) -> str:
        """The zone that the readings are about."""

    def now(self) -> datetime:
        """The time on the provider's clock (UTC): a replay's is the recording's."""

    async def latest(self) -> Intensity:
        """The reading for now. Raises GridError; bounded in time."""

    async def history(self) -> tuple[Intensity, ...]:
        """Readings of the past day or so, oldest first; empty if the provider has none. Raises GridError."""

    async def forecast(self) -> tuple[Intensity, ...]:
        """Readings ahead, oldest first, `issued` set; empty if the provider has none. Raises GridError."""

    async def aclose(self) -> None:
        """Let connections go."""


def plausible(grams_per_kwh: float) -> float:
    """The value, clamped to what grids reach. Raises Implausible for what can only be a fault."""
    if not math.isfinite(grams_per_kwh) or not 0 <= grams_per_kwh <= ABSURD_GRAMS_PER_KWH:
        raise Implausible(f"{grams_per_kwh} gCO2e/kWh is no grid's intensity")
    return min(grams_per_kwh, MAX_GRAMS_PER_KWH)


def sound(readings: Iterable[Callable[[], Intensity]]) -> tuple[Intensity, ...]:
    """The readings that are no fault, by time: one bad row is not worth the others."""
    found = []
    for make in readings:
        with contextlib.suppress(Implausible, NoData):
            found.append(make())
    return tuple(sorted(found, key=lambda reading: reading.time))


def check_fresh(reading: Intensity, now: datetime, max_age_s: float) -> None:
    """Raises Stale or FutureDated unless the reading is about now."""
    age_s = reading.age_s(now)
    if age_s > max_age_s:
        raise Stale(f"the newest reading is of {format_utc(reading.time)}, {age_s:.0f} s old")
    if age_s < -FUTURE_TOLERANCE_S:
        raise FutureDated(f"the reading is of {format_utc(reading.time)}, {-age_s:.0f} s ahead of the clock")


def parse_utc(text: str) -> datetime:
    """An ISO 8601 time, seconds optional, without a zone UTC. Raises ValueError or TypeError."""
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def format_utc(time: datetime) -> str:
    """`YYYY-MM-DDThh:mm:ssZ`."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _measure(text: str) -> Measure:
    if text not in get_args(Measure):
        raise ValueError(f"{text!r} is no measure")
    return text  # type: ignore[return-value]


def _kind(text: str) -> Kind:
    if text not in get_args(Kind):
        raise ValueError(f"{text!r} is no kind of reading")
    return text  # type: ignore[return-value]
