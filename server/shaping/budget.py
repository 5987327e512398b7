"""The budget policy: so many grams of CO2e, or kWh, a day or month, approached gracefully.

At every look the dial is set to where the rest of the budget lasts for the rest of the period, given what answering
costs lately. An overspent budget means the cheapest point that the floor allows; no request is refused for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from server.shaping_settings import ShapingSettings

JOULES_PER_KWH = 3_600_000.0
PACE_HOURS = 24.0
"""Time constant of what full quality costs an hour: a day, so that nights and days weigh evenly."""
LAST_HOURS = 0.25
"""The rest of a period never counts as shorter: its last minutes would swing the dial."""


@dataclass(frozen=True)
class BudgetState:
    """What the budget policy carries along. Amounts are in `unit`."""

    period: str = ""
    """The day or month that `spent` belongs to (UTC), such as `2024-05-01` or `2024-05`."""
    spent: float = 0.0
    joules_seen: float | None = None
    """The meter's last total; None before the first."""
    full_per_hour: float | None = None
    """What an hour costs at full quality, averaged; None before it is known."""
    unit: str = "grams"
    """The `budget_unit` that the amounts are in."""
    measured_hours: float = 0.0
    """Hours that `full_per_hour` is made of."""
    unbooked_hours: float = 0.0
    """Hours whose joules are not booked yet: the meter was not read, or the intensity was unknown."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable."""
        return {
            "period": self.period,
            "spent": self.spent,
            "joules_seen": self.joules_seen,
            "full_per_hour": self.full_per_hour,
            "unit": self.unit,
            "measured_hours": self.measured_hours,
            "unbooked_hours": self.unbooked_hours,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse. Raises KeyError, TypeError or ValueError on anything else."""
        seen, full = data["joules_seen"], data["full_per_hour"]
        return cls(
            str(data["period"]),
            float(data["spent"]),
            None if seen is None else float(seen),
            None if full is None else float(full),
            str(data["unit"]),
            float(data["measured_hours"]),
            float(data["unbooked_hours"]),
        )


def spend(
    state: BudgetState,
    joules_total: float | None,
    grams_per_kwh: float | None,
    hours: float,
    cost_share: float,
    now: datetime,
    settings: ShapingSettings,
) -> BudgetState:
    """The state after `hours` at whose end the meter stands at `joules_total` (None: unread).

    `cost_share` is what an answer cost then, as a share of full quality's. Grams without a known intensity cannot be
    booked at their time; they are booked at the next known one. A meter that stands lower than before forgot its last
    seconds, or everything: neither says what was spent since, so that nothing is booked and the pace stays.
    """
    state = _begun(state, now, settings)
    hours += state.unbooked_hours
    if joules_total is None or (settings.budget_unit == "grams" and grams_per_kwh is None):
        return replace(state, unbooked_hours=hours)
    before, state = state.joules_seen, replace(state, joules_seen=joules_total, unbooked_hours=0.0)
    if before is None or joules_total < before:
        return state
    amount = (joules_total - before) / JOULES_PER_KWH
    if settings.budget_unit == "grams":
        assert grams_per_kwh is not None
        amount *= grams_per_kwh
    state = replace(state, spent=state.spent + amount)
    return _paced(state, amount / hours / cost_share, hours) if hours > 0 else state


def _begun(state: BudgetState, now: datetime, settings: ShapingSettings) -> BudgetState:
    """The state with nothing spent, if another period has begun; with nothing known, if the unit is another."""
    if settings.budget_unit != state.unit:
        state = replace(state, unit=settings.budget_unit, spent=0.0, full_per_hour=None, measured_hours=0.0)
    period = period_of(now, settings)
    return state if period == state.period else replace(state, period=period, spent=0.0)


def _paced(state: BudgetState, rate: float, hours: float) -> BudgetState:
    """The state after `hours` in which full quality would have cost `rate` an hour.

    The plain mean at first: a start's power, which comes first, must not pass for a day's.
    """
    measured, full = state.measured_hours + hours, state.full_per_hour
    step = min(1.0, hours / min(measured, PACE_HOURS))
    return replace(state, full_per_hour=rate if full is None else full + (rate - full) * step, measured_hours=measured)


def wanted_level(
    state: BudgetState, cheapest_share: float, now: datetime, settings: ShapingSettings
) -> tuple[float, str]:
    """Where the dial should stand (0 full quality, 1 cheapest), and why. `cheapest_share` is the cheapest allowed
    point's cost as a share of full quality's."""
    amount = settings.budget_amount
    assert amount is not None  # the settings insist on it
    used = f"{state.spent / amount:.0%}"
    left = amount - state.spent
    if left <= 0:
        return 1.0, f"budget-spent:{used}"
    if state.full_per_hour is None or state.full_per_hour <= 0:
        return 0.0, "budget-unmeasured"
    hours = max(LAST_HOURS, (end_of(now, settings) - now).total_seconds() / 3600)
    allowed_share = left / hours / state.full_per_hour
    if allowed_share >= 1:
        return 0.0, f"budget-kept:{used}"
    if cheapest_share >= 1:
        return 1.0, f"budget-tight:{used}"
    return min(1.0, (1 - allowed_share) / (1 - cheapest_share)), f"budget-tight:{used}"


def course(state: BudgetState, now: datetime, settings: ShapingSettings) -> dict[str, float] | None:
    """Shares of the period's budget that are spent and of the period that has passed; None without a budget."""
    if settings.budget_amount is None or state.unit != settings.budget_unit:
        return None
    begin, end = _begin_of(now, settings), end_of(now, settings)
    spent = state.spent if state.period == period_of(now, settings) else 0.0
    return {
        "spent_ratio": spent / settings.budget_amount,
        "elapsed_ratio": (now - begin).total_seconds() / (end - begin).total_seconds(),
    }


def period_of(now: datetime, settings: ShapingSettings) -> str:
    """Name of the period that `now` lies in."""
    return now.astimezone(UTC).strftime("%Y-%m-%d" if settings.budget_period == "day" else "%Y-%m")


def end_of(now: datetime, settings: ShapingSettings) -> datetime:
    """When that period ends."""
    begin = _begin_of(now, settings)
    if settings.budget_period == "day":
        return begin + timedelta(days=1)
    return (begin + timedelta(days=32)).replace(day=1)


def _begin_of(now: datetime, settings: ShapingSettings) -> datetime:
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day if settings.budget_period == "day" else day.replace(day=1)
