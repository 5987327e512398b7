"""The estimated source, for machines without energy counters: power as a straight line over CPU use.

`P = n_vcpu * (Pmin + (Pmax - Pmin) * u) + 0.392 * GiB` watts, u = busy share of the processors, steal
excluded. Form and coefficients: Cloud Carbon Footprint's methodology (see `coefficients.yaml`). Integrated
over time it needs no samples of u: `E = n * Pmin * t + (Pmax - Pmin) * busy CPU-seconds + 0.392 * GiB * t`.

Since it is linear in CPU time, ratios between two ways to compute are trustworthy; absolute joules are good
to about +-50 %.
"""

from __future__ import annotations

from pathlib import Path

from energy.coefficients import Coefficients, CpuCoefficients, load_coefficients
from energy.domains import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, Domain, Reading
from energy.procfs import CpuClock, read_cpu_model, read_memory_gib

NAME = "estimated"
_UJ_PER_WATT_NS = MICROJOULES_PER_JOULE / NANOSECONDS_PER_SECOND


class EstimatedSource:
    """Domains `cpu` (device `node`) and `memory`. Memory is all idle: it draws the same whoever computes."""

    def __init__(
        self,
        clock: CpuClock | None = None,
        *,
        proc_root: Path = Path("/proc"),
        coefficients: Coefficients | None = None,
        cpu_family: str | None = None,
    ) -> None:
        """`clock` is the machine's CPU clock (sampled here at each read). Raises SourceUnavailable
        without /proc.
        """
        table = coefficients or load_coefficients()
        self.clock = clock or CpuClock(proc_root)
        self.cpu: CpuCoefficients = (
            table.for_family(cpu_family) if cpu_family else table.for_cpu(read_cpu_model(proc_root))
        )
        self._memory_watts = table.memory_watts_per_gib * read_memory_gib(proc_root)
        self._uncertainty = table.uncertainty["uncalibrated"]
        ceiling = 2 * self.clock.cpus * self.cpu.max_watts + self._memory_watts
        self._cpu_domain = Domain("cpu", "node", NAME, max_watts=ceiling)
        self._memory_domain = Domain("memory", "node", NAME, max_watts=ceiling)

    @property
    def name(self) -> str:
        """`estimated`."""
        return NAME

    @property
    def relative_uncertainty(self) -> float:
        """0.5 unless calibrated."""
        return self._uncertainty

    @property
    def idle_watts(self) -> float:
        """What the formula gives for the machine at rest, memory included."""
        return self.clock.cpus * self.cpu.min_watts + self._memory_watts

    def dynamic_joules_per_cpu_second(self) -> float:
        """Joules that a second of CPU time adds to idling: Pmax - Pmin."""
        return self.cpu.dynamic_watts

    def domains(self) -> list[Domain]:
        """`cpu` and `memory`."""
        return [self._cpu_domain, self._memory_domain]

    def read(self) -> list[Reading]:
        """Cumulative estimate since the source was opened; nothing if `/proc/stat` cannot be read now."""
        if not self.clock.sample():
            return []
        clock = self.clock
        idle_uj = int(self.cpu.min_watts * _UJ_PER_WATT_NS * clock.elapsed_ns)
        dynamic_uj = int(self.cpu.dynamic_watts * _UJ_PER_WATT_NS * clock.busy_ns)
        memory_uj = int(self._memory_watts * _UJ_PER_WATT_NS * clock.wall_ns)
        return [
            Reading(self._cpu_domain, idle_uj + dynamic_uj, clock.time_ns, idle_uj),
            Reading(self._memory_domain, memory_uj, clock.time_ns, memory_uj),
        ]
