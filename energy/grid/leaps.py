"""Leaps that no grid makes: a feed that lies for minutes is outwaited, a real change is believed in time.

A reading is measured against the last good one, or, where that is too old, against what the past days held. What leaps
is refused until it has held for a while. A first reading that nothing can be measured against is taken on trust; if the
next ones contradict it, neither is believed until one has held.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from energy.grid.signal import Implausible, Intensity


@dataclass(frozen=True)
class LeapLimits:
    """A leap differs by more than `ratio` and by more than `grams_per_kwh`.

    In two recorded years of 12 regions and a year of France no change within two hours is one (the widest beyond 100 g:
    a factor of 2.9, California's sunset); in a year of Great Britain two are, both plainly faults of the recording
    (278, then 70 for two hours, then 275).
    """

    ratio: float = 3.0
    grams_per_kwh: float = 100.0
    window_s: float = 7200.0
    """How old the last good reading may be to be measured against."""
    believed_after_s: float = 1800.0
    """A leap that has held for so long is believed. Longer outwaits longer lies and follows a real change later."""

    def apart(self, one: float, other: float) -> bool:
        """Whether no grid goes from `one` to `other` (gCO2e/kWh) within the window."""
        low, high = sorted((one, other))
        return high > low * self.ratio and high - low > self.grams_per_kwh


@dataclass(frozen=True)
class Reference:
    """What a reading is measured against. `span`: least and most of the past days, None if nothing is known of them."""

    last: Intensity | None
    trusted: bool
    span: tuple[float, float] | None


class LeapGuard:
    """Remembers since when something implausible has been told."""

    def __init__(self, limits: LeapLimits) -> None:
        self._limits = limits
        self._held: Intensity | None = None
        self._since: datetime | None = None
        self._taken_since: datetime | None = None

    def check(self, reading: Intensity, now: datetime, reference: Reference) -> bool:
        """Whether the reading can be trusted from now on, or is merely taken for want of a better. Raises Implausible
        for one that cannot; a `last` that was not trusted is not to be believed then either."""
        limits = self._limits
        why, trusted = self._doubt(reading, reference)
        if why is None:
            self._held = self._since = None
            self._taken_since = self._taken_since or now
            return trusted or self._lasted(self._taken_since, now)
        self._taken_since = None
        held, since = self._held, self._since
        set_back = since is not None and since > now
        if held is None or since is None or set_back or limits.apart(held.grams_per_kwh, reading.grams_per_kwh):
            since = self._since = now
        self._held = reading
        if self._lasted(since, now):
            self._held = self._since = None
            return True
        raise Implausible(why)

    def _doubt(self, reading: Intensity, reference: Reference) -> tuple[str | None, bool]:
        """What speaks against the reading, None if nothing does, and whether anything speaks for it."""
        limits, last, grams = self._limits, reference.last, reading.grams_per_kwh
        if last is not None and abs((reading.time - last.time).total_seconds()) < limits.window_s:
            if limits.apart(last.grams_per_kwh, grams):
                return f"a leap from {last.grams_per_kwh:g} to {grams:g} gCO2e/kWh within two hours", False
            return None, reference.trusted
        if reference.span is not None:
            low, high = reference.span
            if (grams > high and limits.apart(grams, high)) or (grams < low and limits.apart(grams, low)):
                return f"{grams:g} gCO2e/kWh, where the past days held {low:g} to {high:g}", False
            return None, True
        # Nothing to measure against, unless something implausible is being held: then it is one of the two.
        if self._held is not None:
            return f"{grams:g} gCO2e/kWh after contradicting readings", False
        return None, False

    def _lasted(self, since: datetime, now: datetime) -> bool:
        return (now - since).total_seconds() >= self._limits.believed_after_s
