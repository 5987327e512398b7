"""The estimated source, for machines without energy counters: power as a straight line over CPU use.

`P = n_vcpu * (Pmin + (Pmax - Pmin) * u) + 0.392 * GiB` watts, u = busy share of the processors, steal
excluded. Form and coefficients: Cloud Carbon Footprint's methodology (see `coefficients.yaml`). Integrated
over time it needs no samples of u: `E = n * Pmin * t + (Pmax - Pmin) * busy CPU-seconds + 0.392 * GiB * t`.

Since it is linear in CPU time, ratios between two ways to compute are trustworthy; the joules above idling are good to
about +-50 %, those of idling are overestimated on well-tuned machines (`python -m energy.accuracy`).

A calibration (`jouleserve calibrate`) puts the machine's own curve of watts by load in place of the family's straight
line. It covers whatever its reference covered, memory included, so there is one domain `machine` then.
"""

from __future__ import annotations

from pathlib import Path

from energy.calibration import Calibration
from energy.coefficients import Coefficients, CpuCoefficients, load_coefficients
from energy.domains import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, Domain, Reading
from energy.procfs import CpuClock, read_cpu_model, read_memory_gib

NAME = "estimated"
_UJ_PER_WATT_NS = MICROJOULES_PER_JOULE / NANOSECONDS_PER_SECOND


class EstimatedSource:
    """Domains `cpu` and `memory`, or `machine` if calibrated (device `node`). Memory is all idle: it draws the same
    whoever computes.
    """

    name = NAME

    def __init__(
        self,
        clock: CpuClock | None = None,
        *,
        proc_root: Path = Path("/proc"),
        coefficients: Coefficients | None = None,
        cpu_family: str | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """`clock` is the machine's CPU clock (sampled here at each read). Raises SourceUnavailable
        without /proc.
        """
        table = coefficients or load_coefficients()
        self.clock = clock or CpuClock(proc_root)
        self.calibration = calibration
        self.cpu: CpuCoefficients = (
            table.for_family(cpu_family) if cpu_family else table.for_cpu(read_cpu_model(proc_root))
        )
        self._memory_watts = table.memory_watts_per_gib * read_memory_gib(proc_root)
        self.relative_uncertainty = table.uncertainty["uncalibrated"]
        self.dynamic_uncertainty = table.uncertainty["uncalibrated_dynamic"]
        """Smaller than that of the whole where idling is guessed."""
        if calibration is not None:
            self.relative_uncertainty = self.dynamic_uncertainty = calibration.relative_uncertainty(table.uncertainty)
        ceiling = 2 * self.clock.cpus * self.cpu.max_watts + self._memory_watts
        self._cpu_domain = Domain("cpu", "node", NAME, max_watts=ceiling)
        self._memory_domain = Domain("memory", "node", NAME, max_watts=ceiling)
        self._machine_domain = Domain(
            "machine", "node", NAME, max_watts=2 * calibration.watts(1) if calibration else None
        )
        self._busy_ns, self._offered_ns, self._wall_ns = self.clock.busy_ns, self.clock.elapsed_ns, self.clock.wall_ns
        self._machine_uj = self._machine_idle_uj = 0.0

    @property
    def idle_watts(self) -> float:
        """What the formula gives for the machine at rest, memory included."""
        if self.calibration is not None:
            return self.calibration.idle_watts
        return self.clock.cpus * self.cpu.min_watts + self._memory_watts

    def dynamic_joules_per_cpu_second(self) -> float | None:
        """What a second of CPU time adds to idling: Pmax - Pmin. None with a calibrated curve, where it depends on the
        load.
        """
        return None if self.calibration is not None else self.cpu.dynamic_watts

    def domains(self) -> list[Domain]:
        """`cpu` and `memory`, or `machine`."""
        return [self._cpu_domain, self._memory_domain] if self.calibration is None else [self._machine_domain]

    def read(self) -> list[Reading]:
        """Cumulative estimate since the source was opened; nothing if `/proc/stat` cannot be read now."""
        if not self.clock.sample():
            return []
        clock = self.clock
        if self.calibration is not None:
            return [self._read_curve(self.calibration)]
        idle_uj = int(self.cpu.min_watts * _UJ_PER_WATT_NS * clock.elapsed_ns)
        dynamic_uj = int(self.cpu.dynamic_watts * _UJ_PER_WATT_NS * clock.busy_ns)
        memory_uj = int(self._memory_watts * _UJ_PER_WATT_NS * clock.wall_ns)
        return [
            Reading(self._cpu_domain, idle_uj + dynamic_uj, clock.time_ns, idle_uj),
            Reading(self._memory_domain, memory_uj, clock.time_ns, memory_uj),
        ]

    def _read_curve(self, calibration: Calibration) -> Reading:
        """Power at the mean load since the read before: a curve needs samples, a second apart in the node process."""
        clock = self.clock
        busy_ns, offered_ns = clock.busy_ns - self._busy_ns, clock.elapsed_ns - self._offered_ns
        wall_ns = clock.wall_ns - self._wall_ns
        self._busy_ns, self._offered_ns, self._wall_ns = clock.busy_ns, clock.elapsed_ns, clock.wall_ns
        if offered_ns > 0:
            self._machine_uj += calibration.watts(busy_ns / offered_ns) * wall_ns * _UJ_PER_WATT_NS
            self._machine_idle_uj += calibration.idle_watts * wall_ns * _UJ_PER_WATT_NS
        return Reading(self._machine_domain, int(self._machine_uj), clock.time_ns, int(self._machine_idle_uj))
