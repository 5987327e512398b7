"""The words of metering: a domain, a reading of its cumulative energy, and the source that reads it.

Energy is always a cumulative count of integer microjoules; watts exist only as a difference of two readings.
A domain that cannot be read is absent from a reading, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

MICROJOULES_PER_JOULE = 1_000_000
NANOSECONDS_PER_SECOND = 1_000_000_000


class SourceUnavailable(Exception):
    """An energy source cannot be used on this machine; the message says why and what would change that."""


@dataclass(frozen=True, slots=True)
class Domain:
    """One counter of energy: what it covers (`name`), on which device, and who measures it.

    Two domains are the same if name, device and source are; the other fields describe the counter.
    """

    name: str
    device: str
    source: str
    wraps_at_uj: int | None = field(default=None, compare=False)
    """The counter starts again at 0 after this many microjoules; None for a counter that never wraps."""
    overlaps: bool = field(default=False, compare=False)
    """True if other domains hold the same joules already (psys, core): shown, never summed."""
    max_watts: float | None = field(default=None, compare=False)
    """More than the device can draw; None if no bound is known. Used to tell wraps from nonsense."""
    limit_watts: float | None = field(default=None, compare=False)
    """The device's own power limit; None where none is stated. No load within it is doubted, however sudden."""
    never_rests: bool = field(default=False, compare=False)
    """True if the device draws something at all times, so that a counter that stands still is broken."""
    on_cpu: bool = field(default=True, compare=False)
    """True if CPU time is what drives this domain's dynamic energy; False for a GPU."""

    @property
    def label(self) -> str:
        """`source/device/name`, for messages."""
        return f"{self.source}/{self.device}/{self.name}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a counter showed: cumulative microjoules at a monotone time."""

    domain: Domain
    energy_uj: int
    time_ns: int
    idle_uj: int | None = None
    """Cumulative idle part, for the sources that know it by construction; None if it has to be learned."""


@runtime_checkable
class EnergySource(Protocol):
    """Reads the counters of one device family.

    `read` returns a reading for each domain that could be read now and leaves the others out; it never raises
    for a counter that went missing.
    """

    @property
    def name(self) -> str:
        """The label `source` of every figure: rapl, nvml, estimated or fake."""
        ...

    @property
    def relative_uncertainty(self) -> float:
        """Half width of the error band of any of its figures, as a share of the figure: 0.5 means +-50 %."""
        ...

    @property
    def dynamic_uncertainty(self) -> float:
        """The same for the part above idling alone, which requests owe."""
        ...

    def domains(self) -> Sequence[Domain]:
        """The domains that were there when the source was opened."""
        ...

    def read(self) -> list[Reading]:
        """Read every domain that can be read now."""
        ...
