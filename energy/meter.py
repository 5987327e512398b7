"""The one owner of every counter's last value and of the totals made from it.

`Meter.tick` turns cumulative readings into differences; who wants to do that later takes `read`, and hands what it gave
to `judge`, in order. Rules: the first reading is only a baseline; a wrap adds the rest of the range; a gap longer than
half the range at maximum power, a counter that went back without wrapping and a difference beyond maximum power
re-baseline and are reported as missing. A counter that cannot be read, or that stands still although its device always
draws something (frozen), is missing for that tick, and what it counted meanwhile arrives with its next reading. A jump
of such a device's to more than ten times the highest power that was seen, and beyond its power limit where one is
stated, is held back: if the next reading still shows such a power it was a load and nothing is lost, otherwise it was
nonsense and is not counted. Missing is absent, never 0.

Totals are not sums of those differences: they are read off the counters themselves, last reading minus first with
whole ranges for wraps. So whoever books the differences can be checked against the totals.

`measure_process` (see `energy.span`) is the same for one process over one piece of work.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from energy.domains import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, Domain, EnergySource, Reading

# Counters are refreshed up to 100 ms apart, so a short tick may hold the energy of a longer time.
_REFRESH_NS = 250_000_000
JUMP_FACTOR = 10
_LASTING_SHARE = 0.25
DISBELIEVED = ("gap", "reset", "implausible", "jump")
"""Reasons for which nobody can vouch for what a counter showed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delta:
    """Energy that one domain drew since its previous good reading."""

    domain: Domain
    energy_uj: int
    duration_ns: int
    idle_uj: int | None = None
    """The idle part, if the source knows it by construction."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A domain that gave no figure in a tick, and why: unreadable, frozen, jump, gap, reset or implausible."""

    domain: Domain
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """One reading of all meters, as differences to the one before."""

    deltas: tuple[Delta, ...]
    missing: tuple[Missing, ...]
    total_uj: Mapping[Domain, int]
    """`Meter.total_uj` at that reading: not made of `deltas`, so that it can check who books them."""


@dataclass(slots=True)
class _Run:
    """A counter's readings, one after the other without a break, and its advance in the runs before."""

    first_uj: int
    last_uj: int
    wraps: int = 0
    earlier_uj: int = 0
    counted: bool = False
    """True once a reading after the baseline was accepted."""

    def follow(self, counter_uj: int) -> None:
        self.wraps += counter_uj < self.last_uj
        self.last_uj, self.counted = counter_uj, True

    def start_over(self, counter_uj: int, range_uj: int) -> None:
        self.earlier_uj = self.advance_uj(range_uj)
        self.first_uj, self.last_uj, self.wraps = counter_uj, counter_uj, 0

    def advance_uj(self, range_uj: int) -> int:
        return self.earlier_uj + self.wraps * range_uj + self.last_uj - self.first_uj


class Meter:
    """Reads sources and keeps totals in integer microjoules. Not thread-safe: one reader owns it."""

    def __init__(self, sources: Sequence[EnergySource]) -> None:
        """Nothing is read yet; the first `tick` is the baseline."""
        self._sources = tuple(sources)
        self._last: dict[Domain, Reading] = {}
        self._runs: dict[Domain, _Run] = {}
        self._peak_watts: dict[Domain, float] = {}
        self._suspects: dict[Domain, Reading] = {}
        """Readings that jumped, with `_last` still before them, until the next one shows what they were."""
        self._broken: set[str] = set()
        self.missing_ticks: dict[tuple[Domain, str], int] = {}
        """How often a domain gave no figure, by reason."""
        self._missing: tuple[Missing, ...] = ()
        self.unmetered_uj: dict[tuple[Domain, str], int] = {}
        """What counters showed and nobody can vouch for, by reason (gap, reset, implausible, jump); in no total.

        After a gap whole ranges may be missing from it, after a reset what was drawn before the reset; after a jump or
        an implausible step it may be nonsense.
        """

    @property
    def sources(self) -> tuple[EnergySource, ...]:
        """The sources that are read, in their order."""
        return self._sources

    @property
    def total_uj(self) -> dict[Domain, int]:
        """How far each counter advanced since its baseline, for every domain that ever gave a difference.

        Read off the counters: last minus first reading, whole ranges for wraps, without what is in `unmetered_uj`.
        """
        return {domain: run.advance_uj(domain.wraps_at_uj or 0) for domain, run in self._runs.items() if run.counted}

    @property
    def missing_now(self) -> dict[Domain, bool]:
        """Whether a domain gave no figure in the latest tick, for every domain of the sources."""
        missing = {entry.domain for entry in self._missing}
        return {domain: domain in missing for source in self._sources for domain in source.domains()}

    def tick(self) -> Tick:
        """Read every source once. A source that raises is reported as missing and read again next time."""
        return self.judge(self.read())

    def read(self) -> list[list[Reading]]:
        """What every source shows now, for `judge`; nothing of one that raises."""
        return [self._read(source) for source in self._sources]

    def judge(self, readings: Sequence[Sequence[Reading]]) -> Tick:
        """Turn the next readings of every source into differences."""
        deltas: list[Delta] = []
        missing: list[Missing] = []
        for source, shown in zip(self._sources, readings, strict=True):
            seen: set[Domain] = set()
            for reading in shown:
                seen.add(reading.domain)
                outcome = self._advance(reading)
                if isinstance(outcome, Delta):
                    deltas.append(outcome)
                elif outcome is not None:
                    missing.append(outcome)
            missing += [Missing(domain, "unreadable") for domain in source.domains() if domain not in seen]
        self._missing = tuple(missing)
        for entry in missing:
            key = (entry.domain, entry.reason)
            self.missing_ticks[key] = self.missing_ticks.get(key, 0) + 1
        return Tick(tuple(deltas), self._missing, self.total_uj)

    def _read(self, source: EnergySource) -> list[Reading]:
        try:
            readings = source.read()
        except Exception:
            # A failing meter must never break what it meters.
            if source.name not in self._broken:
                log.exception("energy source %s failed; its domains are missing until it recovers", source.name)
            self._broken.add(source.name)
            return []
        self._broken.discard(source.name)
        return readings

    def _advance(self, reading: Reading) -> Delta | Missing | None:
        """The difference to the domain's previous reading; None for a baseline."""
        domain = reading.domain
        previous = self._last.get(domain)
        if previous is None:
            self._last[domain] = reading
            self._runs[domain] = _Run(reading.energy_uj, reading.energy_uj)
            return None
        if reading.time_ns <= previous.time_ns:
            # Read twice within one step of the clock: wait for the next reading.
            return None
        outcome = _judge(previous, reading)
        if self._is_frozen(previous, reading):
            return Missing(domain, "frozen")
        suspect = self._suspects.pop(domain, None)
        if suspect is not None and not self._vouches_for(suspect, previous, reading):
            self._start_over(suspect, previous, "jump")
            return self._advance(reading)
        if suspect is None and self._jumps(previous, reading, outcome):
            self._suspects[domain] = reading
            return Missing(domain, "jump")
        if isinstance(outcome, Missing):
            self._start_over(reading, previous, outcome.reason)
        else:
            self._last[domain] = reading
            self._runs[domain].follow(reading.energy_uj)
            self._peak_watts[domain] = max(self._peak_watts.get(domain, 0.0), _watts(outcome))
        return outcome

    def _start_over(self, reading: Reading, previous: Reading, reason: str) -> None:
        """Take `reading` for a new baseline; what it shows since `previous` is believed by nobody."""
        domain = reading.domain
        self._last[domain] = reading
        self._runs[domain].start_over(reading.energy_uj, domain.wraps_at_uj or 0)
        key = (domain, reason)
        self.unmetered_uj[key] = self.unmetered_uj.get(key, 0) + _shown_uj(previous, reading)

    def _is_frozen(self, previous: Reading, reading: Reading) -> bool:
        """True if a counter stands still that never should, for longer than counters take to be refreshed."""
        still = reading.energy_uj == previous.energy_uj and reading.time_ns - previous.time_ns > _REFRESH_NS
        return still and reading.domain.never_rests

    def _jumps(self, previous: Reading, reading: Reading, outcome: Delta | Missing) -> bool:
        """True for a power far beyond any that was seen, on a counter whose plausible power is known at all and whose
        device never rests: cores go from nothing to all they have in any second. A burst within the device's power
        limit is a load, though a second is all it lasts: that of a process that saw none."""
        domain = reading.domain
        peak = self._peak_watts.get(domain, 0.0)
        if isinstance(outcome, Missing) or domain.max_watts is None or not domain.never_rests or peak <= 0:
            return False
        return _watts(outcome) > max(JUMP_FACTOR * peak, domain.limit_watts or 0.0)

    def _vouches_for(self, suspect: Reading, previous: Reading, reading: Reading) -> bool:
        """Whether the reading after a jump makes sense of it: the power lasts, or the counter is back on its way."""
        whole = _judge(previous, reading)
        if isinstance(whole, Missing):
            return False
        if reading.energy_uj < suspect.energy_uj:
            return _watts(whole) <= JUMP_FACTOR * self._peak_watts[reading.domain]
        jumped, since = _judge(previous, suspect), _judge(suspect, reading)
        if isinstance(jumped, Missing) or isinstance(since, Missing):
            return False
        return _watts(since) >= _LASTING_SHARE * _watts(jumped)


def _watts(delta: Delta) -> float:
    return delta.energy_uj / MICROJOULES_PER_JOULE / (delta.duration_ns / NANOSECONDS_PER_SECOND)


def _judge(previous: Reading, reading: Reading) -> Delta | Missing:
    domain = reading.domain
    duration_ns = reading.time_ns - previous.time_ns
    energy_uj = reading.energy_uj - previous.energy_uj
    if _too_long(domain, duration_ns):
        return Missing(domain, "gap")
    if energy_uj < 0:
        if domain.wraps_at_uj is None:
            return Missing(domain, "reset")
        energy_uj += domain.wraps_at_uj
    if energy_uj < 0 or energy_uj > _ceiling_uj(domain, duration_ns):
        return Missing(domain, "implausible")
    return Delta(domain, energy_uj, duration_ns, _idle_uj(previous, reading, energy_uj))


def _shown_uj(previous: Reading, reading: Reading) -> int:
    """What a counter shows for a difference that is not believed; the lesser of both where it wrapped or was reset."""
    energy_uj = reading.energy_uj - previous.energy_uj
    if energy_uj >= 0:
        return energy_uj
    range_uj = reading.domain.wraps_at_uj
    wrapped_uj = reading.energy_uj if range_uj is None else max(energy_uj + range_uj, 0)
    return min(wrapped_uj, reading.energy_uj)


def _too_long(domain: Domain, duration_ns: int) -> bool:
    """True if the counter may have wrapped unseen: longer than half its range at maximum power."""
    if domain.wraps_at_uj is None or domain.max_watts is None:
        return False
    half_range_s = domain.wraps_at_uj / MICROJOULES_PER_JOULE / 2 / domain.max_watts
    return duration_ns > half_range_s * NANOSECONDS_PER_SECOND


def _ceiling_uj(domain: Domain, duration_ns: int) -> float:
    if domain.max_watts is None:
        return float("inf")
    seconds = (duration_ns + _REFRESH_NS) / NANOSECONDS_PER_SECOND
    return domain.max_watts * seconds * MICROJOULES_PER_JOULE


def _idle_uj(previous: Reading, reading: Reading, energy_uj: int) -> int | None:
    if previous.idle_uj is None or reading.idle_uj is None:
        return None
    return min(max(reading.idle_uj - previous.idle_uj, 0), energy_uj)
