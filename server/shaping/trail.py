"""The grid's recent past as the percentile policy sees it: how dirty is this, of the past season and year?

Both windows are kept sorted, so that a rank is a binary search. They are sampled in *request time*: one sample for
every usual hour's worth of requests, so that a busy hour weighs as much as the answers that it gives.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

SEASON_SAMPLES = 60 * 24
YEAR_STRIDE = 3
"""The year keeps every third sample: its ranks differ by less than a thousandth, and it is three times cheaper."""
YEAR_SAMPLES = 365 * 24 // YEAR_STRIDE


@dataclass(frozen=True)
class Window:
    """The newest samples (gCO2e/kWh), in the order of time and sorted."""

    timed: tuple[float, ...] = ()
    ordered: tuple[float, ...] = ()

    def with_sample(self, value: float, limit: int) -> Window:
        """This window after one more sample, the oldest dropped beyond `limit`."""
        ordered = _inserted(self.ordered, value)
        timed = (*self.timed, value)
        if len(timed) > limit:
            at = bisect_left(ordered, timed[0])
            ordered = ordered[:at] + ordered[at + 1 :]
            timed = timed[1:]
        return Window(timed, ordered)

    def rank(self, value: float) -> float:
        """Share of the samples below `value`, half of the equal ones counted: 0 cleanest, 1 dirtiest."""
        if not self.ordered:
            return 0.5
        return (bisect_left(self.ordered, value) + bisect_right(self.ordered, value)) / (2 * len(self.ordered))

    def quantile(self, share: float) -> float:
        """The value that about `share` of the samples lie below. Raises IndexError on an empty window."""
        return self.ordered[min(int(share * len(self.ordered)), len(self.ordered) - 1)]


@dataclass(frozen=True)
class Trail:
    """A season (60 days) and a year of samples. `count` is how many samples were ever taken."""

    count: int = 0
    season: Window = Window()
    year: Window = Window()

    @classmethod
    def of(cls, hourly: Sequence[float]) -> Self:
        """The trail after these samples, oldest first."""
        season, year = tuple(hourly[-SEASON_SAMPLES:]), tuple(hourly[::YEAR_STRIDE][-YEAR_SAMPLES:])
        return cls(len(hourly), Window(season, tuple(sorted(season))), Window(year, tuple(sorted(year))))

    def with_sample(self, grams_per_kwh: float) -> Trail:
        """This trail after one more sample."""
        year = self.year
        if self.count % YEAR_STRIDE == 0:
            year = year.with_sample(grams_per_kwh, YEAR_SAMPLES)
        return Trail(self.count + 1, self.season.with_sample(grams_per_kwh, SEASON_SAMPLES), year)

    def rank(self, grams_per_kwh: float, year_weight: float) -> float:
        """Rank in the year and in the season, mixed by `year_weight`."""
        return year_weight * self.year.rank(grams_per_kwh) + (1 - year_weight) * self.season.rank(grams_per_kwh)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable."""
        return {"count": self.count, "season": _short(self.season), "year": _short(self.year)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse. Raises KeyError, TypeError or ValueError on anything else."""
        season, year = _samples(data["season"], SEASON_SAMPLES), _samples(data["year"], YEAR_SAMPLES)
        return cls(int(data["count"]), Window(season, tuple(sorted(season))), Window(year, tuple(sorted(year))))


def _inserted(ordered: tuple[float, ...], value: float) -> tuple[float, ...]:
    at = bisect_left(ordered, value)
    return (*ordered[:at], value, *ordered[at:])


def _short(window: Window) -> list[float]:
    return [round(value, 1) for value in window.timed]


def _samples(values: Sequence[Any], limit: int) -> tuple[float, ...]:
    found = tuple(float(value) for value in values[-limit:])
    if not all(0 <= value <= 10_000 for value in found):
        raise ValueError("a sample is no grid's intensity")
    return found
