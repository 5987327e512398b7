"""Software Carbon Intensity, ISO/IEC 21031:2024: `SCI = (E * I + M) / R`. Pure.

`E * I` are the operational emissions, summed hour by hour at each hour's intensity; `M = TE * TS * RS` the share of the
hardware's embodied emissions (total, times the share of its life that was used, times the share of it that was
reserved); `R` the number of functional units. Carbon offsets and market-based instruments play no part in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from energy.coefficients import Coefficients

HOURS_PER_YEAR = 8766.0
_GRAMS_PER_KG = 1000.0
_BASE_MEMORY_GIB = 16.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the embodied emissions of one server follow from."""

    total_kg: float
    lifespan_years: float
    resource_share: float
    """Share of the server that is reserved for the service: 1 for a whole machine, vCPUs over all vCPUs for a part."""
    relative_uncertainty: float
    source: str

    def embodied_grams(self, hours: float) -> float:
        """M of so many hours."""
        return self.total_kg * _GRAMS_PER_KG * (hours / (self.lifespan_years * HOURS_PER_YEAR)) * self.resource_share


@dataclass(frozen=True, slots=True)
class Sci:
    """A score with what it is made of; grams of CO2e, per functional unit in grams a unit."""

    operational_grams: float
    embodied_grams: float
    units: int
    relative_uncertainty: float

    @property
    def grams_per_unit(self) -> float:
        """The score."""
        return (self.operational_grams + self.embodied_grams) / self.units


def assumed_hardware(table: Coefficients, processors: int, memory_gib: float, resource_share: float) -> Hardware:
    """A rack server by the published model: base, further processors, further memory."""
    known = table.embodied
    total_kg = known["base_kg"] + known["processor_kg"] * (processors - 1)
    total_kg += known["memory_kg_per_gib"] * max(memory_gib - _BASE_MEMORY_GIB, 0.0)
    source = table.sources[table.embodied_source]
    return Hardware(total_kg, known["lifespan_years"], resource_share, known["relative_uncertainty"], source)


def score(
    operational_grams: float, operational_uncertainty: float, hardware: Hardware, hours: float, units: int
) -> Sci | None:
    """The score of `hours` of service; None without a functional unit. Errors of both parts are independent."""
    if units <= 0:
        return None
    embodied = hardware.embodied_grams(hours)
    total = operational_grams + embodied
    error = math.hypot(operational_grams * operational_uncertainty, embodied * hardware.relative_uncertainty)
    return Sci(operational_grams, embodied, units, error / total if total > 0 else 0.0)
