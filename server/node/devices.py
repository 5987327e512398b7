"""Who kept the GPUs of the node busy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from energy.domains import EnergySource
from energy.sources.nvml import NvmlSource


def busy_by_replica(sources: Sequence[EnergySource], instances: Mapping[int, str]) -> dict[str, dict[str, int]]:
    """Busy time since the call before, by device and replica instance, "" for other processes; in the driver's unit.

    `instances` names the replicas by pid. Empty without a GPU that says so.
    """
    found: dict[str, dict[str, int]] = {}
    for source in sources:
        if isinstance(source, NvmlSource):
            for device, by_pid in source.busy().items():
                kept = found.setdefault(device, {})
                for pid, amount in by_pid.items():
                    instance = instances.get(pid, "")
                    kept[instance] = kept.get(instance, 0) + amount
    return found
