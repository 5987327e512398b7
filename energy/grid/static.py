"""A constant intensity: the operator's own figure, or the world mean where nobody gave one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from energy.grid.signal import Intensity, plausible

WORLD_MEAN_GRAMS_PER_KWH = 473.0
"""World mean of 2024, gCO2/kWh; not measured here. Source: Ember, Global Electricity Review 2025
(2025-04-08)."""


def utc_now() -> datetime:
    """The wall clock, UTC."""
    return datetime.now(UTC)


class StaticProvider:
    """Always the same value. Without one given it is the world mean, marked `estimated`: fit for gram figures
    with that label, not for deciding anything."""

    name = "static"

    def __init__(
        self,
        grams_per_kwh: float | None = None,
        zone: str | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.zone = zone or ("world" if grams_per_kwh is None else "static")
        self._assumed = grams_per_kwh is None
        self._grams_per_kwh = plausible(WORLD_MEAN_GRAMS_PER_KWH if grams_per_kwh is None else grams_per_kwh)
        self._clock = clock

    def now(self) -> datetime:
        """The wall clock."""
        return self._clock()

    async def latest(self) -> Intensity:
        """The constant, dated now."""
        return Intensity(self.zone, self.name, self.now(), self._grams_per_kwh, "static", self._assumed)

    async def history(self) -> tuple[Intensity, ...]:
        """None: a constant has no past to speak of."""
        return ()

    async def forecast(self) -> tuple[Intensity, ...]:
        """None: a constant predicts nothing."""
        return ()

    async def aclose(self) -> None:
        """Nothing to let go."""
