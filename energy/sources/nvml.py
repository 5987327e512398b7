"""NVIDIA GPUs through NVML's total-energy counter (millijoules since the driver was loaded).

`nvmlDeviceGetTotalEnergyConsumption` exists from Volta on and is refreshed about every 100 ms, so once a
second is fine and once a batch is not. The module `pynvml` (distribution `nvidia-ml-py`) is imported only
when a source is opened.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from typing import Any

from energy.coefficients import Coefficients, load_coefficients
from energy.domains import Domain, Reading, SourceUnavailable

NAME = "nvml"
_UJ_PER_MJ = 1000
_MAX_WATTS = 3000.0
"""Above any board sold; taken where the driver knows no limit."""
_LIMIT_MARGIN = 2.0
_MW_PER_WATT = 1000

log = logging.getLogger(__name__)


def _import_pynvml() -> Any:
    return importlib.import_module("pynvml")


class NvmlSource:
    """One domain `gpu` for each GPU that has the counter; a GPU without it is named in a warning and
    left out.
    """

    name = NAME

    def __init__(
        self,
        *,
        load: Callable[[], Any] = _import_pynvml,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        coefficients: Coefficients | None = None,
    ) -> None:
        """Open NVML. Raises SourceUnavailable if there is no library, driver or GPU with the counter."""
        self._clock_ns = clock_ns
        self.relative_uncertainty = self.dynamic_uncertainty = (coefficients or load_coefficients()).uncertainty[NAME]
        """The same for both: what idling draws is learned from the same counters."""
        try:
            self._nvml = load()
        except ImportError as error:
            raise SourceUnavailable(f"pynvml: {error}; install nvidia-ml-py to meter NVIDIA GPUs") from None
        try:
            self._nvml.nvmlInit()
            count = int(self._nvml.nvmlDeviceGetCount())
        except (self._nvml.NVMLError, OSError) as error:
            raise SourceUnavailable(f"nvml: {error}; no NVIDIA driver on this machine") from None
        self._handles: dict[Domain, Any] = {}
        self._busy_since_us: dict[Domain, int] = {}
        for index in range(count):
            self._open(index)
        if not self._handles:
            self.close()
            raise SourceUnavailable(f"nvml: none of {count} GPUs has an energy counter")

    def _open(self, index: int) -> None:
        device = f"gpu-{index}"
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except self._nvml.NVMLError as error:
            log.warning("nvml: %s has no readable energy counter and is left out: %s", device, error)
            return
        if self._is_partitioned(handle):
            log.warning("nvml: %s is split by MIG; its counter covers all partitions together", device)
        limit = self._limit_watts(handle)
        watts = _MAX_WATTS if limit is None else _LIMIT_MARGIN * limit
        domain = Domain("gpu", device, NAME, max_watts=watts, limit_watts=limit, never_rests=True, on_cpu=False)
        self._handles[domain] = handle

    def _limit_watts(self, handle: Any) -> float | None:
        """The highest power limit that the board can be given; None where it states none."""
        try:
            _, highest_mw = self._nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
        except self._nvml.NVMLError:
            return None
        return highest_mw / _MW_PER_WATT if highest_mw > 0 else None

    def _is_partitioned(self, handle: Any) -> bool:
        try:
            current, _ = self._nvml.nvmlDeviceGetMigMode(handle)
        except self._nvml.NVMLError:
            return False
        return bool(current)

    def domains(self) -> list[Domain]:
        """The GPUs, by index."""
        return list(self._handles)

    def read(self) -> list[Reading]:
        """The GPUs that answer now; one that fell off the bus is left out."""
        readings = []
        for domain, handle in self._handles.items():
            try:
                energy_mj = int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
            except self._nvml.NVMLError:
                continue
            readings.append(Reading(domain, energy_mj * _UJ_PER_MJ, self._clock_ns()))
        return readings

    def busy(self) -> dict[str, dict[int, int]]:
        """How long processes kept each GPU busy since the call before, by device and pid, in percent-samples of the
        driver: a share of one another, nothing more. A GPU that gives none (MIG, old boards) is left out.
        """
        found: dict[str, dict[int, int]] = {}
        for domain, handle in self._handles.items():
            try:
                samples = self._nvml.nvmlDeviceGetProcessUtilization(handle, self._busy_since_us.get(domain, 0))
            except self._nvml.NVMLError:
                continue
            by_pid = found.setdefault(domain.device, {})
            for sample in samples:
                by_pid[int(sample.pid)] = by_pid.get(int(sample.pid), 0) + int(sample.smUtil)
            newest = max((int(sample.timeStamp) for sample in samples), default=0)
            self._busy_since_us[domain] = max(newest, self._busy_since_us.get(domain, 0))
        return found

    def close(self) -> None:
        """Give the library back; errors at this point help nobody and are dropped."""
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            log.debug("nvml: shutdown: %s", error)
