"""Which operating point answers which class of request. Pure: no I/O, no clock, no framework.

Classes: `strict` is always answered by full quality; `eco` always by the cheapest point that meets its floor;
`standard` by the point that the policy picks, never below its floor; a class that opted out by full quality. Points
come from a manifest: position 0 is full quality, each next one is cheaper. A floor that no point meets is answered by
full quality. Between two points the requests are divided by their session or text (`server.shaping.sides`).

Reasons are short, `code` or `code:detail`: `strict`, `eco`, `opt-out`, `off`, `pin`, `floor:0.95`,
`grid-dirty:412>350`, `grid-clean:280<300`, `grid-band:320`, `grid-unknown`, `grid-assumed`, `grid-learning:3/12`,
`rank-dirty:0.81>0.52`, `rank-clean:0.31<0.48`, `rank-band:0.50`, `switch-limit:1.5`, `static-dirty:412>350`,
`static-clean:280<300`, `static-band:320` (`percentile` goes by the thresholds where the grid is one number: a constant
has no dirtiest hours), `budget-kept:31%`, `budget-tight:80%`, `budget-spent:101%`, `budget-unmeasured`; `dwell:<code>`
while a switch waits. The engine adds `load-spike` and `p99-guard`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self, get_args

from energy.grid.signal import Intensity
from models.manifest import OperatingPoint
from server.shaping import budget, percentile
from server.shaping.budget import BudgetState
from server.shaping.percentile import PercentileState
from server.shaping.sides import Split
from server.shaping_settings import ShapingSettings

QualityClass = Literal["strict", "standard", "eco"]
CLASSES: tuple[QualityClass, ...] = get_args(QualityClass)

LONGEST_STEP_S = 6 * 3600.0
"""A longer pause between two decisions (the server was off) counts as this."""
SHARE_STEP = 0.01
"""The dial stands at multiples of this between two points."""


@dataclass(frozen=True)
class Inputs:
    """What a decision may look at beside the grid. None: nobody knows."""

    now: datetime | None = None
    """The time on the grid's clock (aware): a replay's is the recording's. Without it, `now_s` counts as one."""
    requests_per_s: float | None = None
    """Standard requests a second since the last decision."""
    joules_total: float | None = None
    """The meter's total so far."""
    expected_grams_per_kwh: float | None = None
    """What a late reading lets one expect of now (`energy.grid.nowcast`); None: the reading stands as it is."""


@dataclass(frozen=True)
class PolicyState:
    """What the policy carries from one decision to the next."""

    dirty: bool = False
    """The grid counts as dirty (hysteresis included)."""
    switched_s: float | None = None
    """When `dirty` last changed, on the clock that `decide` is given; None before the first switch."""
    level: float = 0.0
    """Where the dial stands, from 0 (full quality) to 1 (the cheapest point allowed)."""
    decided: datetime | None = None
    """When the last decision was made, on the grid's clock."""
    percentile: PercentileState = field(default_factory=PercentileState)
    budget: BudgetState = field(default_factory=BudgetState)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable: what a restart should still know. A dwell begins anew."""
        return {"percentile": self.percentile.to_dict(), "budget": self.budget.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse. Raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            percentile=PercentileState.from_dict(data["percentile"]), budget=BudgetState.from_dict(data["budget"])
        )


@dataclass(frozen=True)
class Decision:
    """Position of the dial for standard requests, the point of each class, and why."""

    dial: int
    """Index of the standard class's point; 0 is full quality."""
    point_by_class: dict[QualityClass, str]
    reason_by_class: dict[QualityClass, str]
    split: Split | None = None
    """Which standard requests a cheaper point answers, while the dial stands between two points."""
    spike: str | None = None
    """What answers standard requests while a spike in load endangers the latency objective; None: nothing else."""

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
    split: Split | None = None
    spike: str | None = None

    @classmethod
    def initial(cls, points: Sequence[OperatingPoint], settings: ShapingSettings) -> Self:
        """What holds before the grid was first looked at."""
        _, decision = decide(PolicyState(), None, settings, 0.0, points)
        return cls.of(decision, 0)

    @classmethod
    def of(cls, decision: Decision, version: int) -> Self:
        """The state that `decision` asks for."""
        return cls(decision.point_by_class, decision.reason_by_class, version, decision.split, decision.spike)

    def answers(self, quality: QualityClass) -> tuple[str, str]:
        """Name of the point that answers the class, and why. Some of the standard requests go to `split.point`."""
        return self.point_by_class[quality], self.reason_by_class[quality]

    def points(self) -> set[str]:
        """Every point that may answer."""
        beside = (None if self.split is None else self.split.point, self.spike)
        return {*self.point_by_class.values(), *(name for name in beside if name is not None)}

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable, for Serve's `user_config`."""
        return {
            "point_by_class": dict(self.point_by_class),
            "reason_by_class": dict(self.reason_by_class),
            "version": self.version,
            "split": None if self.split is None else self.split.to_dict(),
            "spike": self.spike,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ValueError naming the field that is wrong."""
        for name in ("point_by_class", "reason_by_class"):
            if not isinstance(data.get(name), dict) or set(data[name]) != set(CLASSES):
                raise ValueError(f"dial.{name}: must map each of {', '.join(CLASSES)}")
        if not isinstance(data.get("version"), int):
            raise ValueError("dial.version: must be a whole number")
        split, spike = data.get("split"), data.get("spike")
        if spike is not None and not isinstance(spike, str):
            raise ValueError("dial.spike: must name a point or be null")
        return cls(
            dict(data["point_by_class"]),
            dict(data["reason_by_class"]),
            data["version"],
            None if split is None else Split.from_dict(split),
            spike,
        )

    def followed_by(self, decision: Decision) -> Self:
        """The next state if `decision` differs in a point or in a reason's code, else this one.

        A detail alone (the grams of the latest reading) is not worth a push to every replica.
        """
        codes = {c: code(r) for c, r in decision.reason_by_class.items()}
        same_codes = codes == {c: code(r) for c, r in self.reason_by_class.items()}
        same_points = decision.point_by_class == self.point_by_class and decision.spike == self.spike
        if same_codes and same_points and decision.split == self.split:
            return self
        return self.of(decision, self.version + 1)


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
    inputs: Inputs | None = None,
) -> tuple[PolicyState, Decision]:
    """The next state and what each class is answered by.

    `now_s` is any monotone clock in seconds, the same for every call. `signal` is None if nothing is known of
    the grid: then standard requests return to full quality, after the dwell (`budget` goes on by what it knows).
    """
    inputs = inputs or Inputs()
    floors = settings.floors
    named = settings.pin_point if settings.policy == "pin" else settings.fallback_point
    wanted = _index(points, named)
    lowest = _meeting(points, wanted, floors.standard)
    state, level, reason = _level(state, signal, settings, now_s, points, lowest, inputs)
    position = level * lowest
    if lowest != wanted and level > 0 and (lowest == 0 or named is not None):
        reason = f"floor:{floors.standard:g}"
    if "standard" in settings.opt_out:
        position, reason = 0.0, "opt-out"
    better, share = _place(position)
    split = Split(points[better + 1].name, share) if share else None
    eco, why = points[_meeting(points, len(points) - 1, floors.eco)].name, "eco"
    if "eco" in settings.opt_out:
        eco, why = points[0].name, "opt-out"
    return state, Decision(
        dial=better + (share >= 0.5),
        point_by_class={"strict": points[0].name, "standard": points[better].name, "eco": eco},
        reason_by_class={"strict": "strict", "standard": reason, "eco": why},
        split=split,
        spike=_spike(points, settings),
    )


def _spike(points: Sequence[OperatingPoint], settings: ShapingSettings) -> str | None:
    """The cheapest point that meets the standard floor, where a spike in load may override the grid."""
    if not settings.spike_override or "standard" in settings.opt_out:
        return None
    least = _meeting(points, len(points) - 1, settings.floors.standard)
    return points[least].name if least else None


def _place(position: float) -> tuple[int, float]:
    """The better of the two points that `position` lies between, and the share of the requests at the other."""
    better = int(position)
    share = round((position - better) / SHARE_STEP) * SHARE_STEP
    return (better + 1, 0.0) if share >= 1 - SHARE_STEP / 2 else (better, share)


def _level(
    state: PolicyState,
    signal: Intensity | None,
    settings: ShapingSettings,
    now_s: float,
    points: Sequence[OperatingPoint],
    lowest: int,
    inputs: Inputs,
) -> tuple[PolicyState, float, str]:
    """The next state, where the dial stands between full quality (0) and the point `lowest` (1), and why.

    What the percentile and budget policies learn goes on under every policy, so that changing to one of them starts
    neither from nothing nor from a wrong past.
    """
    now = datetime.fromtimestamp(now_s, UTC) if inputs.now is None else inputs.now
    state, elapsed_s = _learn(state, signal, settings, now, points, lowest, inputs)
    if settings.policy == "off":
        state, level, reason = replace(state, dirty=False, switched_s=None), 0.0, "off"
    elif settings.policy == "pin":
        state, level, reason = replace(state, dirty=False, switched_s=None), 1.0, "pin"
    elif settings.policy == "budget":
        cheapest = _cost_share(points, lowest)
        wanted, reason = budget.wanted_level(state.budget, cheapest, now, settings)
        level = _towards(state.level, wanted, elapsed_s, settings)
    else:
        state, dirty, reason = _wanted(state, signal, settings, now, inputs.expected_grams_per_kwh)
        if dirty == state.dirty:
            pass
        elif state.switched_s is not None and now_s - state.switched_s < settings.min_dwell_s:
            reason = f"dwell:{code(reason)}"
        else:
            ranked = state.percentile
            if _by_rank(signal, settings):
                ranked = percentile.switched(ranked, settings)
            state = replace(state, dirty=dirty, switched_s=now_s, percentile=ranked)
        level = float(state.dirty)
        if settings.policy == "percentile":
            level = _towards(state.level, level, elapsed_s, settings)
    return state if level == state.level else replace(state, level=level), level, reason


def _learn(
    state: PolicyState,
    signal: Intensity | None,
    settings: ShapingSettings,
    now: datetime,
    points: Sequence[OperatingPoint],
    lowest: int,
    inputs: Inputs,
) -> tuple[PolicyState, float]:
    """The state after the time since the last decision, and how long that was, in seconds (0 at the first)."""
    elapsed_s = 0.0
    if state.decided is not None:
        elapsed_s = max(0.0, min((now - state.decided).total_seconds(), LONGEST_STEP_S))
    hours = elapsed_s / 3600
    ruled = _by_rank(signal, settings)
    ranked = percentile.elapse(state.percentile, hours, state.level, inputs.requests_per_s, settings, ruled)
    if signal is not None and signal.kind in ("live", "replay"):
        ranked = percentile.sample(ranked, signal.grams_per_kwh)
    # What the period has cost counts whichever policy was in force then.
    grams = None if signal is None else signal.grams_per_kwh
    cost = 1 - state.level * (1 - _cost_share(points, lowest))
    spent = budget.spend(state.budget, inputs.joules_total, grams, hours, cost, now, settings)
    return replace(state, decided=now, percentile=ranked, budget=spent), elapsed_s


def _towards(level: float, wanted: float, elapsed_s: float, settings: ShapingSettings) -> float:
    """`level`, moved towards `wanted` as far as the swing allows."""
    if settings.swing_s <= 0:
        return wanted
    step = elapsed_s / settings.swing_s
    return max(level - step, min(level + step, wanted))


def _cost_share(points: Sequence[OperatingPoint], index: int) -> float:
    """What the point costs, as a share of full quality."""
    return points[index].answer_cpu_seconds_per_1k / points[0].answer_cpu_seconds_per_1k


def _by_rank(signal: Intensity | None, settings: ShapingSettings) -> bool:
    """Whether the percentile policy decides by ranks: not where the grid is one number."""
    return settings.policy == "percentile" and (signal is None or signal.kind != "static")


def _wanted(
    state: PolicyState,
    signal: Intensity | None,
    settings: ShapingSettings,
    now: datetime,
    expected_grams_per_kwh: float | None,
) -> tuple[PolicyState, bool, str]:
    """The next state, whether the grid should count as dirty, were there no dwell, and why."""
    if signal is None:
        return state, False, "grid-unknown"
    if signal.kind == "static" and signal.estimated:
        return state, False, "grid-assumed"
    grams = signal.grams_per_kwh if expected_grams_per_kwh is None else expected_grams_per_kwh
    if _by_rank(signal, settings):
        ranked, dirty, reason = percentile.wanted(state.percentile, state.dirty, grams, settings, now)
        return replace(state, percentile=ranked), dirty, reason
    what = "static" if settings.policy == "percentile" else "grid"
    above, below = settings.dirty_above_grams_per_kwh, settings.clean_below_grams_per_kwh
    if grams > above:
        return state, True, f"{what}-dirty:{_show(grams)}>{_show(above)}"
    if grams < below:
        return state, False, f"{what}-clean:{_show(grams)}<{_show(below)}"
    return state, state.dirty, f"{what}-band:{_show(grams)}"


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
