"""Which operating point answers which class of request. Pure: no I/O, no clock, no framework.

Classes: `strict` is always answered by full quality; `eco` always by the cheapest point that meets its floor;
`standard` by the point that the policy picks, never below its floor. Points come from a manifest: position 0
is full quality, each next one is cheaper. A floor that no point meets is answered by full quality.

Reasons are short, `code` or `code:detail`: `strict`, `eco`, `off`, `pin`, `floor:0.95`, `grid-dirty:412>350`,
`grid-clean:280<300`, `grid-band:320`, `grid-unknown`, `grid-assumed`; `dwell:<code>` while a switch waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

from energy.grid.signal import Intensity
from models.manifest import OperatingPoint
from server.settings import ShapingSettings

QualityClass = Literal["strict", "standard", "eco"]
CLASSES: tuple[QualityClass, ...] = get_args(QualityClass)


@dataclass(frozen=True)
class PolicyState:
    """What the policy carries from one decision to the next."""

    dirty: bool = False
    """The grid counts as dirty (hysteresis included)."""
    switched_s: float | None = None
    """When `dirty` last changed, on the clock that `decide` is given; None before the first switch."""


@dataclass(frozen=True)
class Decision:
    """Position of the dial for standard requests, the point of each class, and why."""

    dial: int
    """Index of the standard class's point; 0 is full quality."""
    point_by_class: dict[QualityClass, str]
    reason_by_class: dict[QualityClass, str]

    @property
    def point(self) -> str:
        """The standard class's point."""
        return self.point_by_class["standard"]

    @property
    def reason(self) -> str:
        """Why the standard class is answered by it."""
        return self.reason_by_class["standard"]


@dataclass(frozen=True)
class DialState:
    """The decision in force, as replicas hold it. A replica ignores a version older than the one it has."""

    point_by_class: dict[QualityClass, str]
    reason_by_class: dict[QualityClass, str]
    version: int = 0

    @classmethod
    def initial(cls, points: Sequence[OperatingPoint], settings: ShapingSettings) -> Self:
        """What holds before the grid was first looked at."""
        _, decision = decide(PolicyState(), None, settings, 0.0, points)
        return cls(decision.point_by_class, decision.reason_by_class)

    def answers(self, quality: QualityClass) -> tuple[str, str]:
        """Name of the point that answers the class, and why."""
        return self.point_by_class[quality], self.reason_by_class[quality]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable, for Serve's `user_config`."""
        return {
            "point_by_class": dict(self.point_by_class),
            "reason_by_class": dict(self.reason_by_class),
            "version": self.version,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ValueError naming the field that is wrong."""
        for name in ("point_by_class", "reason_by_class"):
            if not isinstance(data.get(name), dict) or set(data[name]) != set(CLASSES):
                raise ValueError(f"dial.{name}: must map each of {', '.join(CLASSES)}")
        if not isinstance(data.get("version"), int):
            raise ValueError("dial.version: must be a whole number")
        return cls(dict(data["point_by_class"]), dict(data["reason_by_class"]), data["version"])

    def followed_by(self, decision: Decision) -> Self:
        """The next state if `decision` differs in a point or in a reason's code, else this one.

        A detail alone (the grams of the latest reading) is not worth a push to every replica.
        """
        codes = {c: code(r) for c, r in decision.reason_by_class.items()}
        same_codes = codes == {c: code(r) for c, r in self.reason_by_class.items()}
        if same_codes and decision.point_by_class == self.point_by_class:
            return self
        return type(self)(decision.point_by_class, decision.reason_by_class, self.version + 1)


def code(reason: str) -> str:
    """A reason without its detail; `dwell:grid-clean` and `dwell:grid-dirty` are told apart."""
    head, _, detail = reason.partition(":")
    return reason if head == "dwell" else head if detail else reason


def decide(
    state: PolicyState,
    signal: Intensity | None,
    settings: ShapingSettings,
    now_s: float,
    points: Sequence[OperatingPoint],
) -> tuple[PolicyState, Decision]:
    """The next state and what each class is answered by.

    `now_s` is any monotone clock in seconds, the same for every call. `signal` is None if nothing is known of
    the grid: then standard requests return to full quality, after the dwell.
    """
    floors = settings.floors
    if settings.policy == "off":
        state, wanted, reason = PolicyState(), 0, "off"
    elif settings.policy == "pin":
        state, reason = PolicyState(), "pin"
        wanted = _index(points, settings.pin_point)
    else:
        state, reason = _threshold(state, signal, settings, now_s)
        wanted = _index(points, settings.fallback_point) if state.dirty else 0
    dial = _meeting(points, wanted, floors.standard)
    if dial != wanted and (dial == 0 or settings.policy == "pin" or settings.fallback_point is not None):
        reason = f"floor:{floors.standard:g}"
    standard = points[dial].name
    eco = points[_meeting(points, len(points) - 1, floors.eco)].name
    return state, Decision(
        dial=dial,
        point_by_class={"strict": points[0].name, "standard": standard, "eco": eco},
        reason_by_class={"strict": "strict", "standard": reason, "eco": "eco"},
    )


def _threshold(
    state: PolicyState, signal: Intensity | None, settings: ShapingSettings, now_s: float
) -> tuple[PolicyState, str]:
    dirty, reason = _wanted(state.dirty, signal, settings)
    if dirty == state.dirty:
        return state, reason
    if state.switched_s is not None and now_s - state.switched_s < settings.min_dwell_s:
        return state, f"dwell:{code(reason)}"
    return replace(state, dirty=dirty, switched_s=now_s), reason


def _wanted(dirty: bool, signal: Intensity | None, settings: ShapingSettings) -> tuple[bool, str]:
    """Whether the grid should count as dirty, were there no dwell, and why."""
    if signal is None:
        return False, "grid-unknown"
    if signal.kind == "static" and signal.estimated:
        return False, "grid-assumed"
    grams = signal.grams_per_kwh
    above, below = settings.dirty_above_grams_per_kwh, settings.clean_below_grams_per_kwh
    if grams > above:
        return True, f"grid-dirty:{_show(grams)}>{_show(above)}"
    if grams < below:
        return False, f"grid-clean:{_show(grams)}<{_show(below)}"
    return dirty, f"grid-band:{_show(grams)}"


def _index(points: Sequence[OperatingPoint], name: str | None) -> int:
    """Position of the point called `name`. None means the cheapest; an unknown name means full quality."""
    if name is None:
        return len(points) - 1
    return next((i for i, point in enumerate(points) if point.name == name), 0)


def _meeting(points: Sequence[OperatingPoint], wanted: int, floor: float) -> int:
    """The cheapest position not cheaper than `wanted` that meets `floor` (relative accuracy); 0 if none
    does."""
    return next((i for i in range(wanted, 0, -1) if points[i].relative_accuracy >= floor), 0)


def _show(grams_per_kwh: float) -> str:
    return f"{round(grams_per_kwh, 1):g}"
