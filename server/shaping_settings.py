"""Settings of demand-shaping. Every field says below it what it trades and in which unit."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from server.section import Section

THRESHOLDS = frozenset({"dirty_above_grams_per_kwh", "clean_below_grams_per_kwh"})
"""Fields of `ShapingSettings` that choose the `threshold` policy, if none is chosen beside them."""

PolicyName = Annotated[
    Literal["off", "pin", "threshold", "percentile", "budget"],
    # YAML 1.1 reads a bare `off` as false; whoever writes `policy: off` means the policy.
    BeforeValidator(lambda value: "off" if value is False else value),
]


def _words(value: Any) -> Any:
    """A list may be given as text, on the command line."""
    return [word for word in value.replace(",", " ").split() if word] if isinstance(value, str) else value


class Floors(Section):
    """Least accuracy of a class, as a share of the teacher's. A point below it never answers that class."""

    standard: float = Field(default=0.95, ge=0, le=1)
    """Floor for ordinary requests. Lower lets the dial save more when the grid is dirty."""
    eco: float = Field(default=0.90, ge=0, le=1)
    """Floor for requests that ask for `eco`, which always take the cheapest point above it. At most
    `standard`."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.eco > self.standard:
            raise ValueError(f"eco: {self.eco} is above standard {self.standard}; set eco at or below standard")
        return self


class ClassLatencies(Section):
    """Milliseconds that the 99th percentile of a class should keep; null does not watch it."""

    strict: float | None = Field(default=None, ge=1, le=3_600_000)
    """For `strict`. Full quality is no cascade as a rule, so that there is nothing to guard."""
    standard: float | None = Field(default=None, ge=1, le=3_600_000)
    """For ordinary requests. Over it, they keep to single variants for a minute, which cost more joules."""
    eco: float | None = Field(default=None, ge=1, le=3_600_000)
    """For `eco`; over it, `eco` leaves cascades for a minute as `standard` does, at the cost of joules."""


class ShapingSettings(Section):
    """When standard requests move to a cheaper operating point. All of it can change while it runs."""

    policy: PolicyName = "percentile"
    """`off`: full quality. `pin`: always `pin_point`. `threshold`: the cheaper point while the grid is dirtier than
    `dirty_above_grams_per_kwh`. `percentile`: in the dirtiest hours, so that `full_share` of the answers stays at full
    quality. `budget`: as much as keeps within `budget_amount`. `jouleserve replay` shows what each would have done.
    Setting a threshold without a policy chooses `threshold`; `percentile` goes by the thresholds on a static grid."""
    full_share: float = Field(default=0.5, ge=0, le=1)
    """Share of standard answers that `percentile` leaves at full quality in the long run. Lower saves more carbon."""
    quality_debt_days: float = Field(default=60, ge=7, le=366)
    """Days in which `percentile` takes back answers at full quality beyond `full_share`, or gives those owed; until New
    Year where that is farther. Longer saves more carbon and keeps the share less exactly."""
    max_switches_per_day: float = Field(default=1.45, gt=0, le=48)
    """How often `percentile` may turn the dial, in the mean of a fortnight; spells beyond that are skipped, at full
    quality and at the cheaper point in turn. Where the sun sets the grid's daily course two switches a day save the
    most."""
    rank_band: float = Field(default=0.02, ge=0, le=0.4)
    """Half the width of `percentile`'s band, in shares of the past's hours, in which nothing moves. It widens by itself
    where the dial turns too often."""
    swing_s: float = Field(default=900, ge=0, le=86_400)
    """Seconds in which `percentile` and `budget` move the dial from end to end, text by text (a request goes by its
    first). Longer spreads the change, shorter follows the grid more closely."""
    budget_amount: float | None = Field(default=None, gt=0)
    """What `budget` may spend in a period, in `budget_unit`, by the server's own meter."""
    budget_unit: Literal["grams", "kwh"] = "grams"
    """`grams` of CO2e follow the grid, `kwh` do not."""
    budget_period: Literal["day", "month"] = "day"
    """Period of the budget, UTC. A month leaves room for dirty days, a day is kept every day."""
    pin_point: str | None = None
    """Operating point for `pin`. Standard requests use it where it meets their floor."""
    dirty_above_grams_per_kwh: float = Field(default=350, gt=0, le=5000)
    """Above this intensity (gCO2e/kWh) the grid is dirty. Lower saves more carbon and degrades more
    answers."""
    clean_below_grams_per_kwh: float = Field(default=300, ge=0, le=5000)
    """Below this intensity (gCO2e/kWh) it is clean again. The gap to `dirty_above` keeps noise from
    switching."""
    min_dwell_s: float = Field(default=900, ge=0, le=86_400)
    """Least seconds between two switches. Longer is steadier, shorter follows the grid more closely."""
    poll_period_s: float = Field(default=300, ge=0.1, le=3600)
    """Seconds between two looks at the grid (jittered by 10 %). Public feeds change every 5 to 60 minutes."""
    fallback_point: str | None = None
    """Operating point while dirty; null takes the cheapest that meets the standard floor."""
    floors: Floors = Floors()
    """Accuracy floors by class."""
    p99_ms: ClassLatencies = ClassLatencies()
    """Guards of the slowest percent by class: over it, no cascade answers the class."""
    opt_out: Annotated[tuple[Literal["standard", "eco"], ...], BeforeValidator(_words)] = ()
    """Classes that are never shaped: full quality whatever the grid and the load. As a list, or with commas."""
    spike_override: bool = True
    """While a spike in load endangers `batching.latency_objective_ms`, answer standard requests by the cheapest point
    that meets their floor, whatever the grid; counted apart. Without an objective nothing of it happens."""

    @model_validator(mode="before")
    @classmethod
    def _thresholds_mean_their_policy(cls, given: Any) -> Any:
        if isinstance(given, dict) and "policy" not in given and THRESHOLDS & given.keys():
            return {**given, "policy": "threshold"}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.clean_below_grams_per_kwh >= self.dirty_above_grams_per_kwh:
            raise ValueError(
                f"clean_below_grams_per_kwh: {self.clean_below_grams_per_kwh:g} is not below "
                f"dirty_above_grams_per_kwh {self.dirty_above_grams_per_kwh:g}; lower it or raise the other"
            )
        if self.policy == "pin" and self.pin_point is None:
            raise ValueError("pin_point: missing although policy is 'pin'; name an operating point")
        if self.policy == "budget" and self.budget_amount is None:
            raise ValueError("budget_amount: missing although policy is 'budget'; give grams or kWh a period")
        return self
