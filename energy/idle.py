"""What idling draws: known by construction for the estimate, learned from quiet ticks for counters. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from energy.coefficients import CpuCoefficients
from energy.domains import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, Domain
from energy.meter import Delta

QUIET_BUSY_SHARE = 0.05
"""A tick is quiet if the processors were busy for no more than this share."""
_NEW_TICK_WEIGHT = 0.1
_DEVICE_SPAN_NS = NANOSECONDS_PER_SECOND // 2
"""A GPU's counter is refreshed about every 100 ms: over less than this, it may show nothing at all."""


@dataclass
class IdleModel:
    """Learns each domain's idle power from quiet ticks.

    Until a first quiet tick was seen, the idle share follows from the CPU family's Pmin : Pmax at the
    tick's load; a domain without a CPU model (a GPU) then counts as idle for the lowest power it showed.
    """

    cpu: CpuCoefficients
    watts: dict[Domain, float]
    """Learned so far."""
    lowest_watts: dict[Domain, float]
    """Over half a second or more."""
    _spans: dict[Domain, tuple[int, int]] = field(default_factory=dict)
    """Of devices: energy and duration that are too short yet to be learned from."""

    @classmethod
    def fresh(cls, cpu: CpuCoefficients) -> IdleModel:
        """Nothing learned yet."""
        return cls(cpu, {}, {})

    def idle_uj(self, delta: Delta, busy_share: float) -> int:
        """Idle energy of a difference, and learn from it. `busy_share` is the processors' load, 0 to 1."""
        if delta.idle_uj is not None:
            return delta.idle_uj
        if not delta.domain.on_cpu:
            return self._device_idle_uj(delta)
        share = self._modelled_idle_share(busy_share)
        watts = _watts(delta)
        if busy_share <= QUIET_BUSY_SHARE:
            seen = watts * share
            known = self.watts.get(delta.domain, seen)
            self.watts[delta.domain] = known + _NEW_TICK_WEIGHT * (seen - known)
        learned = self.watts.get(delta.domain)
        if learned is None:
            return min(int(delta.energy_uj * share), delta.energy_uj)
        return min(_energy_uj(learned, delta.duration_ns), delta.energy_uj)

    def _device_idle_uj(self, delta: Delta) -> int:
        energy_uj, duration_ns = self._spans.pop(delta.domain, (0, 0))
        energy_uj, duration_ns = energy_uj + delta.energy_uj, duration_ns + delta.duration_ns
        if duration_ns < _DEVICE_SPAN_NS:
            self._spans[delta.domain] = energy_uj, duration_ns
        else:
            known = self.lowest_watts.get(delta.domain, float("inf"))
            self.lowest_watts[delta.domain] = min(known, _power_watts(energy_uj, duration_ns))
        lowest = self.lowest_watts.get(delta.domain)
        if lowest is None:
            return delta.energy_uj
        return min(_energy_uj(lowest, delta.duration_ns), delta.energy_uj)

    def _modelled_idle_share(self, busy_share: float) -> float:
        dynamic = self.cpu.dynamic_watts * min(max(busy_share, 0.0), 1.0)
        return self.cpu.min_watts / (self.cpu.min_watts + dynamic)

    def to_json(self) -> dict[str, object]:
        """State worth keeping over a restart: learned watts by domain label."""
        return {domain.label: watts for domain, watts in {**self.lowest_watts, **self.watts}.items()}

    def restore(self, state: Mapping[str, object], domains: tuple[Domain, ...]) -> None:
        """Take up what an earlier process learned about domains that are still there; ignores the rest."""
        for domain in domains:
            watts = state.get(domain.label)
            if isinstance(watts, float) and watts >= 0:
                (self.watts if domain.on_cpu else self.lowest_watts)[domain] = watts


def _watts(delta: Delta) -> float:
    return _power_watts(delta.energy_uj, delta.duration_ns)


def _power_watts(energy_uj: int, duration_ns: int) -> float:
    return energy_uj / MICROJOULES_PER_JOULE / (duration_ns / NANOSECONDS_PER_SECOND)


def _energy_uj(watts: float, duration_ns: int) -> int:
    return int(watts * duration_ns / NANOSECONDS_PER_SECOND * MICROJOULES_PER_JOULE)
