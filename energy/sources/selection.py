"""Chooses the energy sources of a machine: measured before estimated, and says so when it has to make do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energy.calibration import Calibration
from energy.domains import EnergySource, SourceUnavailable
from energy.procfs import CpuClock
from energy.sources import nvml, rapl
from energy.sources.estimated import EstimatedSource
from energy.sources.nvml import NvmlSource
from energy.sources.rapl import RaplSource

log = logging.getLogger(__name__)

PREFERENCES = ("auto", "rapl", "nvml", "estimated")


@dataclass(frozen=True)
class Selection:
    """The sources in force, the machine's CPU clock, and what had to be given up (one line each)."""

    sources: tuple[EnergySource, ...]
    clock: CpuClock
    warnings: tuple[str, ...]

    @property
    def cpu_source(self) -> EnergySource:
        """The source that meters the processors: always the first."""
        return self.sources[0]

    @property
    def estimated(self) -> EstimatedSource | None:
        """The processors' source if it is the estimate."""
        return self.sources[0] if isinstance(self.sources[0], EstimatedSource) else None


def select_sources(
    preference: str = "auto",
    *,
    proc_root: Path = Path("/proc"),
    powercap_root: Path = rapl.DEFAULT_ROOT,
    load_nvml: Callable[[], Any] | None = None,
    cpu_family: str | None = None,
    calibration: Calibration | None = None,
) -> Selection:
    """Open the best sources: for the processors RAPL, else the estimate; for GPUs NVML where it is there.

    `preference` is one of PREFERENCES: `auto` falls back with a warning; `rapl` and `nvml` raise
    SourceUnavailable where that source is missing; `estimated` is the estimate alone, on any machine the same:
    counters of processors and GPUs are not looked for. `cpu_family` names the row of the estimate's coefficients
    instead of detecting it; `calibration` stands in for them. Raises ValueError for an unknown name.
    """
    if preference not in PREFERENCES:
        raise ValueError(f"energy source {preference!r}; give one of {', '.join(PREFERENCES)}")
    clock = CpuClock(proc_root)
    warnings: list[str] = []
    sources: list[EnergySource] = []
    reason = ""
    if preference != "estimated":
        try:
            sources.append(RaplSource(powercap_root))
        except SourceUnavailable as error:
            if preference == "rapl":
                raise
            reason = str(error)
    if not sources:
        estimate = EstimatedSource(clock, proc_root=proc_root, cpu_family=cpu_family, calibration=calibration)
        sources.append(estimate)
        if reason:
            band = f"+-{estimate.relative_uncertainty:.0%}, above idling +-{estimate.dynamic_uncertainty:.0%}"
            warnings.append(f"energy is estimated from CPU time ({band}), not measured: {reason}")
    if preference != "estimated":
        try:
            sources.append(NvmlSource() if load_nvml is None else NvmlSource(load=load_nvml))
        except SourceUnavailable as error:
            if preference == "nvml":
                raise
            # A machine without an NVIDIA GPU is the common case and deserves no warning.
            log.debug("%s: not there: %s", nvml.NAME, error)
    for warning in warnings:
        log.warning(warning)
    return Selection(tuple(sources), clock, tuple(warnings))
