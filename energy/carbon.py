"""Grams that were saved, by mechanism: efficiency (fewer joules), timing (joules saved in dirtier hours). Pure.

Joules that were avoided in an hour of intensity `I` saved `joules * I` grams. For what shaping avoids by choosing its
hours (`fallback`) that is split at the mean intensity `M` of the trailing four weeks: `joules * M` would have been
saved at any hour and is efficiency; `joules * (I - M)` is owed to the choice of the hour and is timing. Everything else
that avoids joules does so at any hour and is efficiency alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from energy.domains import NANOSECONDS_PER_SECOND

EFFICIENCY, TIMING = "efficiency", "timing"
MECHANISMS = (EFFICIENCY, TIMING)
TIMED = frozenset({"fallback"})
"""Reasons that joules were avoided for at hours of our choosing."""
_MEMORY_S = 28 * 86_400.0


@dataclass
class CarbonBook:
    """Grams saved, and the mean intensity that they are split at."""

    balance_grams: dict[str, float] = field(default_factory=dict)
    """Signed: falling back in hours cleaner than the mean counts against timing."""
    shown_grams: dict[str, float] = field(default_factory=dict)
    """The highest that each balance ever was: what a counter, which must not go back, can show."""
    mean_grams_per_kwh: float | None = None
    """Over the time that was seen, at most about four weeks back; None before any."""
    weight_s: float = 0.0

    def pass_time(self, grams_per_kwh: float, elapsed_ns: int) -> None:
        """Take the intensity of some time into the mean."""
        seconds = elapsed_ns / NANOSECONDS_PER_SECOND
        if seconds <= 0:
            return
        self.weight_s = min(self.weight_s + seconds, _MEMORY_S)
        mean = grams_per_kwh if self.mean_grams_per_kwh is None else self.mean_grams_per_kwh
        self.mean_grams_per_kwh = mean + (grams_per_kwh - mean) * min(seconds / self.weight_s, 1.0)

    def save(self, reason: str, kwh: float, grams_per_kwh: float) -> None:
        """Book energy that was avoided for `reason` at this intensity."""
        mean = self.mean_grams_per_kwh
        if reason not in TIMED or mean is None:
            self._add(EFFICIENCY, kwh * grams_per_kwh)
        else:
            self._add(EFFICIENCY, kwh * mean)
            self._add(TIMING, kwh * (grams_per_kwh - mean))

    def _add(self, mechanism: str, grams: float) -> None:
        balance = self.balance_grams.get(mechanism, 0.0) + grams
        self.balance_grams[mechanism] = balance
        self.shown_grams[mechanism] = max(self.shown_grams.get(mechanism, 0.0), balance)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain maps."""
        return {
            "balance_grams": self.balance_grams,
            "shown_grams": self.shown_grams,
            "mean_grams_per_kwh": self.mean_grams_per_kwh,
            "weight_s": self.weight_s,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> CarbonBook:
        """Turn `to_json` back; an empty map is a fresh book. Raises TypeError or ValueError if it is none."""
        mean = tree.get("mean_grams_per_kwh")
        return cls(
            balance_grams={str(k): float(v) for k, v in tree.get("balance_grams", {}).items()},
            shown_grams={str(k): float(v) for k, v in tree.get("shown_grams", {}).items()},
            mean_grams_per_kwh=None if mean is None else float(mean),
            weight_s=float(tree.get("weight_s", 0.0)),
        )
