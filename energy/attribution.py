"""Who owes which joule: splits a settled window's energy so that the parts add up to the meter exactly.

Pure: no clock, no I/O. All amounts are integer microjoules and integer nanoseconds, and the law holds for
any input:

    attributed + idle + overhead + other == measured          per domain, in microjoules, exactly

Idle is `min(dE, P_idle * dt)`; what is left is dynamic and is split by CPU time among the requests' claims,
the rest of the serving tree (overhead), and the rest of the machine (other). A device that no CPU time drives (a
GPU) is split by its own busy time, by the processes that kept it busy; without such a figure its dynamic energy is
`other` for a reason of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from energy.domains import Domain

Key = TypeVar("Key", bound=Hashable)

OTHER_PROCESSES = "other_processes"
"""Computing outside the serving tree."""
LATE_RECORD = "late_record"
"""Serving work of a replica whose record did not come in time."""
NO_CPU_TIME = "no_cpu_time"
"""Energy above idling in a window in which no CPU time was seen."""
UNCLAIMED_DEVICE = "unclaimed_device"
"""A device that no request claims, above its idling."""
LOST_AT_RESTART = "lost_at_restart"
"""A window that was open when the metering process was killed: its records are lost, its joules are not."""
REASONS = (OTHER_PROCESSES, LATE_RECORD, NO_CPU_TIME, UNCLAIMED_DEVICE, LOST_AT_RESTART)


@dataclass(frozen=True, slots=True)
class DomainEnergy:
    """Energy that a domain drew in a window, and how much of it idling would have drawn."""

    domain: Domain
    energy_uj: int
    idle_uj: int
    """P_idle x dt, or the source's own idle part; may exceed `energy_uj`."""


@dataclass(frozen=True, slots=True)
class Window(Generic[Key]):
    """A stretch of time with all that is known of it."""

    domains: Sequence[DomainEnergy]
    busy_cpu_ns: int
    """CPU time of the whole machine."""
    serving_cpu_ns: int
    """CPU time of the serving tree, the replicas included."""
    claims_cpu_ns: Mapping[Key, int]
    """CPU time that requests owe, by key."""
    late_cpu_ns: int = 0
    """CPU time, out of the serving tree's, of replicas whose claims are not known."""
    device_claims: Mapping[str, Mapping[Key, int]] = field(default_factory=dict)
    """Busy time that requests owe of devices without CPU time, by device and key; any unit, one for a device."""
    device_busy: Mapping[str, int] = field(default_factory=dict)
    """Busy time of those devices by all processes, in the same unit."""


@dataclass(frozen=True, slots=True)
class Split(Generic[Key]):
    """One domain's energy, in parts that add up to it."""

    domain: Domain
    energy_uj: int
    idle_uj: int
    overhead_uj: int
    attributed_uj: Mapping[Key, int]
    other_uj: Mapping[str, int]

    @property
    def parts_uj(self) -> int:
        """The sum of the parts; equal to `energy_uj` by the conservation law."""
        return self.idle_uj + self.overhead_uj + sum(self.attributed_uj.values()) + sum(self.other_uj.values())


@dataclass(frozen=True, slots=True)
class Attribution(Generic[Key]):
    """The split of every domain that counts, and the claims that had no CPU time behind them."""

    splits: tuple[Split[Key], ...]
    excess_cpu_ns: Mapping[Key, int]
    """Claimed CPU time beyond what the serving tree was seen to spend: clock skew, or work of earlier
    windows.
    """


def largest_remainder(amount: int, weights: Sequence[int]) -> list[int]:
    """Split a whole `amount` in proportion to `weights` so that the shares add up to it exactly.

    Every share is its exact quota rounded down or up; units left over go to the largest remainders, ties to
    the earlier weight. Without any weight all shares are 0. Raises ValueError for a negative amount or
    weight.
    """
    if amount < 0 or any(weight < 0 for weight in weights):
        raise ValueError("largest_remainder: amount and weights must not be negative")
    total = sum(weights)
    if total == 0:
        return [0] * len(weights)
    shares, remainders = [], []
    for weight in weights:
        share, remainder = divmod(amount * weight, total)
        shares.append(share)
        remainders.append(remainder)
    left = amount - sum(shares)
    for index in sorted(range(len(weights)), key=lambda i: -remainders[i])[:left]:
        shares[index] += 1
    return shares


def attribute(window: Window[Key]) -> Attribution[Key]:
    """Split a window. Domains that overlap others are left out: their joules are in the others already.

    Raises ValueError if any amount is negative.
    """
    _check(window)
    keys = list(window.claims_cpu_ns)
    claims = list(window.claims_cpu_ns.values())
    serving = window.serving_cpu_ns
    late = min(window.late_cpu_ns, serving)
    granted = claims
    if sum(claims) > serving - late:
        granted = largest_remainder(serving - late, claims)
    overhead = serving - late - sum(granted)
    other = max(window.busy_cpu_ns - serving, 0)
    weights = [*granted, overhead, late, other]
    splits = tuple(
        _split(entry, keys, weights) if entry.domain.on_cpu else _split_device(entry, window)
        for entry in window.domains
        if not entry.domain.overlaps
    )
    pairs = zip(keys, claims, granted, strict=True)
    excess = {key: claim - grant for key, claim, grant in pairs if claim > grant}
    return Attribution(splits, excess)


def _split(entry: DomainEnergy, keys: Sequence[Key], weights: Sequence[int]) -> Split[Key]:
    idle_uj = min(entry.energy_uj, entry.idle_uj)
    dynamic_uj = entry.energy_uj - idle_uj
    if dynamic_uj == 0:
        return Split(entry.domain, entry.energy_uj, idle_uj, 0, {}, {})
    if not any(weights):
        return Split(entry.domain, entry.energy_uj, idle_uj, 0, {}, {NO_CPU_TIME: dynamic_uj})
    *attributed, overhead_uj, late_uj, other_uj = largest_remainder(dynamic_uj, weights)
    return Split(
        domain=entry.domain,
        energy_uj=entry.energy_uj,
        idle_uj=idle_uj,
        overhead_uj=overhead_uj,
        attributed_uj=dict(zip(keys, attributed, strict=True)),
        other_uj={reason: amount for reason, amount in ((LATE_RECORD, late_uj), (OTHER_PROCESSES, other_uj)) if amount},
    )


def _split_device(entry: DomainEnergy, window: Window[Key]) -> Split[Key]:
    idle_uj = min(entry.energy_uj, entry.idle_uj)
    dynamic_uj = entry.energy_uj - idle_uj
    claims = window.device_claims.get(entry.domain.device, {})
    claimed = sum(claims.values())
    others = max(window.device_busy.get(entry.domain.device, 0) - claimed, 0)
    if dynamic_uj == 0 or claimed + others == 0:
        unclaimed = {UNCLAIMED_DEVICE: dynamic_uj} if dynamic_uj else {}
        return Split(entry.domain, entry.energy_uj, idle_uj, 0, {}, unclaimed)
    *attributed, other_uj = largest_remainder(dynamic_uj, [*claims.values(), others])
    other = {OTHER_PROCESSES: other_uj} if other_uj else {}
    return Split(entry.domain, entry.energy_uj, idle_uj, 0, dict(zip(claims, attributed, strict=True)), other)


def _check(window: Window[Key]) -> None:
    if min(window.busy_cpu_ns, window.serving_cpu_ns, window.late_cpu_ns) < 0:
        raise ValueError("window: CPU times must not be negative; take differences of monotone counters")
    if any(claim < 0 for claim in window.claims_cpu_ns.values()):
        raise ValueError("window.claims_cpu_ns: must not be negative; take differences of monotone counters")
    owed = [value for claims in window.device_claims.values() for value in claims.values()]
    if any(value < 0 for value in (*owed, *window.device_busy.values())):
        raise ValueError("window.device_claims, device_busy: must not be negative")
    if any(min(entry.energy_uj, entry.idle_uj) < 0 for entry in window.domains):
        raise ValueError("window.domains: energies must not be negative; leave a missing counter out")
