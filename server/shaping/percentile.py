"""The percentile policy: the cheaper point in the dirtiest hours, and a wanted share of the answers at full quality.

An hour's rank is its place among the hours of the past season and year. Above the wanted share it counts as dirty:
with linear costs, all or nothing saves the most (a ramp between two percentiles saves about a fifth less). Four
corrections keep it honest. *Debt*: full-quality answers given beyond the wanted share are taken back over months, never
at once, and the other way round. *Band*: the distance to the threshold that a switch needs grows while the dial turns
more often than it may. *Limit*: where that is not enough, whole spells are skipped, dirty ones at full quality and
clean ones at the cheaper point in turn, so that the limit moves the share neither way. *Unit of time*: everything
counts in requests, so that the share is one of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

from server.shaping.trail import Trail
from server.shaping_settings import ShapingSettings

YEAR_REST_HOURS = 180 * 24.0
"""The year's rank follows the seasons, which saves the most; the past season's keeps the share. The year alone counts
while more than this of the calendar year is to come, then the season more and more."""
LEARNING_SAMPLES = 12
"""Below so many samples nothing is ranked: full quality."""
DEBT_GAIN = 2.0
MOST_SHIFT = 0.15
MOST_SHIFT_LATE = 0.3
LATE_HOURS = 120 * 24.0
"""Debt of `d` hours moves the threshold by `DEBT_GAIN * d / rest` of rank. The rest is what is left of the calendar
year, never less than `quality_debt_days`; what is owed then is owed in the next year. The shift is at most MOST_SHIFT,
as most of a season's debt is undone by the next season; within `LATE_HOURS` of New Year there is none left to wait for,
and it may grow up to `MOST_SHIFT_LATE`.

These and `YEAR_REST_HOURS` are of the best of 3,000 settings drawn at random, by the mean over all 14 recordings with
every share within a point of its target (flat load, no limit on switches). Chosen so on one half of the recordings, the
best settings save 90.5 and 93.4 % of the oracle's on the other half, where one share of seven is off by more than a
point: the choice carries over, to within a point or two."""
RATE_DAYS = 14.0
"""Time constant of the switches a day."""
BAND_FROM = 0.85
BAND_GAIN = 0.3
MOST_BAND = 0.45
"""From `BAND_FROM` of the allowed switches a day on, each switch a day more widens the band by `BAND_GAIN` of rank."""
MOST_ALLOWANCE_DAYS = 60.0
FIRST_ALLOWANCE_DAYS = 15.0
"""So many days of switches not made can be saved up, and are there at the beginning."""
SKIP_DAYS = 0.75
"""A spell that began while the dial might not turn there and back is skipped for so long after it might: half a night
costs both switches and saves half."""
MOST_LIMIT_HOURS = 12.0
"""So many hours of full quality beyond what the ranks ask for may the limit give, before it holds the cheaper point."""
USUAL_DAYS = 14.0
"""Time constant of the usual request rate."""
MOST_WEIGHT = 5.0


@dataclass(frozen=True)
class PercentileState:
    """What the percentile policy carries along. Hours are request time: a usual hour's worth of requests is one."""

    trail: Trail = field(default_factory=Trail)
    debt_hours: float = 0.0
    """Hours of full quality given beyond the wanted share; below zero: owed."""
    unsampled_hours: float = 1.0
    """Request time since the last sample of the trail."""
    switches_per_day: float = 0.0
    allowance_days: float = FIRST_ALLOWANCE_DAYS
    """Days of allowed switches that were not made."""
    usual_rate: float | None = None
    """Requests a second, slowly averaged; None before the first was seen."""
    rated_hours: float = 0.0
    """Hours that `usual_rate` is made of, those before the first request left out."""
    limit_hours: float = 0.0
    """Hours of full quality that the limit on switches gave beyond what the ranks asked for; below zero: took."""
    asked: bool | None = None
    """Whether the ranks alone called the grid dirty at the last decision; None: they were not asked."""
    skipping: bool = False
    """The limit holds the dial through a spell."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable."""
        return {
            "trail": self.trail.to_dict(),
            "debt_hours": self.debt_hours,
            "unsampled_hours": self.unsampled_hours,
            "switches_per_day": self.switches_per_day,
            "allowance_days": self.allowance_days,
            "usual_rate": self.usual_rate,
            "rated_hours": self.rated_hours,
            "limit_hours": self.limit_hours,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse. Raises KeyError, TypeError or ValueError on anything else."""
        usual = data["usual_rate"]
        return cls(
            Trail.from_dict(data["trail"]),
            float(data["debt_hours"]),
            float(data["unsampled_hours"]),
            float(data["switches_per_day"]),
            float(data["allowance_days"]),
            None if usual is None else float(usual),
            float(data["rated_hours"]),
            float(data.get("limit_hours", 0.0)),  # files of before there was one
        )


def begun(state: PercentileState, hourly: Sequence[float]) -> PercentileState:
    """The state with a past (gCO2e/kWh by the hour, oldest first) where it has learned none itself."""
    return state if state.trail.count else replace(state, trail=Trail.of(hourly))


def elapse(
    state: PercentileState, hours: float, level: float, rate: float | None, settings: ShapingSettings, ruled: bool
) -> PercentileState:
    """The state after `hours` in which the dial stood at `level` (0 full quality, 1 cheapest) and `rate` requests a
    second came (None: unknown, then every hour weighs the same). `ruled`: by this policy's ranks; what others do
    makes no debt and saves up no switches."""
    state, weight = _rated(state, hours, rate)
    if ruled:
        beyond = 0.0 if state.asked is None else state.asked - level
        state = replace(
            state,
            debt_hours=state.debt_hours + (1 - level - settings.full_share) * hours * weight,
            limit_hours=state.limit_hours + beyond * hours * weight,
            allowance_days=min(state.allowance_days + hours / 24, MOST_ALLOWANCE_DAYS),
        )
    return replace(
        state,
        asked=None,
        unsampled_hours=state.unsampled_hours + hours * weight,
        switches_per_day=state.switches_per_day * max(0.0, 1 - hours / (24 * RATE_DAYS)),
    )


def _rated(state: PercentileState, hours: float, rate: float | None) -> tuple[PercentileState, float]:
    """The state with the usual rate after `hours` of `rate`, and what each of them weighs.

    The plain mean at first, so that a burst at the beginning passes; hours before the first request count nothing, as
    there is no telling yet what would be usual.
    """
    if rate is None:
        return state, 1.0
    usual = state.usual_rate
    if not usual and rate <= 0:
        return state, 0.0
    rated = state.rated_hours + hours
    step = min(1.0, hours / min(rated, 24 * USUAL_DAYS)) if rated > 0 else 1.0
    usual = usual + (rate - usual) * step if usual else rate
    weight = min(rate / usual, MOST_WEIGHT) if usual > 0 else 0.0
    return replace(state, usual_rate=usual, rated_hours=rated), weight


def sample(state: PercentileState, grams_per_kwh: float) -> PercentileState:
    """The state after a fresh reading: it becomes a sample if an hour of request time has passed since the last one."""
    if state.unsampled_hours < 1:
        return state
    return replace(
        state, trail=state.trail.with_sample(grams_per_kwh), unsampled_hours=min(state.unsampled_hours - 1, 1.0)
    )


def switched(state: PercentileState, settings: ShapingSettings) -> PercentileState:
    """The state after the dial was turned."""
    return replace(
        state,
        switches_per_day=state.switches_per_day + 1 / RATE_DAYS,
        allowance_days=max(0.0, state.allowance_days - 1 / settings.max_switches_per_day),
    )


def wanted(
    state: PercentileState, dirty: bool, grams_per_kwh: float, settings: ShapingSettings, now: datetime
) -> tuple[PercentileState, bool, str]:
    """The next state, whether the grid should count as dirty, and why."""
    if state.trail.count < LEARNING_SAMPLES:
        return state, False, f"grid-learning:{state.trail.count}/{LEARNING_SAMPLES}"
    asked, reason = _ranked(state, dirty, grams_per_kwh, settings, now)
    there_and_back = 2 / settings.max_switches_per_day + (SKIP_DAYS if state.skipping else 0.0)
    may = state.allowance_days >= there_and_back or (dirty and state.limit_hours <= MOST_LIMIT_HOURS)
    skipping = asked != dirty and not may
    state = replace(state, asked=asked, skipping=skipping)
    return (state, dirty, f"switch-limit:{settings.max_switches_per_day:g}") if skipping else (state, asked, reason)


def _ranked(
    state: PercentileState, dirty: bool, grams_per_kwh: float, settings: ShapingSettings, now: datetime
) -> tuple[bool, str]:
    """What the ranks alone ask for, and why."""
    rest_hours = (datetime(now.year + 1, 1, 1, tzinfo=UTC) - now).total_seconds() / 3600
    rank = state.trail.rank(grams_per_kwh, min(1.0, rest_hours / YEAR_REST_HOURS))
    threshold, band = threshold_of(state, settings, rest_hours)
    if rank > threshold + band:
        return True, f"rank-dirty:{rank:.2f}>{threshold + band:.2f}"
    if rank < threshold - band:
        return False, f"rank-clean:{rank:.2f}<{threshold - band:.2f}"
    return dirty, f"rank-band:{rank:.2f}"


def threshold_of(state: PercentileState, settings: ShapingSettings, rest_hours: float) -> tuple[float, float]:
    """The rank above which the grid is dirty, and the half width of the band around it where nothing moves."""
    late = max(0.0, 1 - rest_hours / LATE_HOURS)
    most = MOST_SHIFT + (MOST_SHIFT_LATE - MOST_SHIFT) * late
    shift = DEBT_GAIN * state.debt_hours / max(rest_hours, settings.quality_debt_days * 24)
    shift = max(-most, min(most, shift))
    threshold = max(0.0, min(1.0, settings.full_share - shift))
    excess = state.switches_per_day - BAND_FROM * settings.max_switches_per_day
    band = max(settings.rank_band, min(MOST_BAND, settings.rank_band + BAND_GAIN * excess))
    # A band that reaches beyond all ranks would hold the dial for good.
    return threshold, min(band, 0.95 * threshold, 0.95 * (1 - threshold))
