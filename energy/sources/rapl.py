"""RAPL through the kernel's powercap tree (`/sys/class/powercap/intel-rapl:*`; AMD processors show up there
too).

Layout and units: Documentation/power/powercap in the Linux tree. `energy_uj` counts microjoules and starts
again at 0 after `max_energy_range_uj`. `package` excludes `dram`; `core` and `uncore` lie inside `package`;
`psys` covers the whole platform, the packages included.

Parts of several dies show a zone a die (`package-0-die-1`), and some of them show the package's one counter in each:
such copies are found by reading the two in turn, and left out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from energy.coefficients import Coefficients, load_coefficients
from energy.domains import Domain, Reading, SourceUnavailable

NAME = "rapl"
DEFAULT_ROOT = Path("/sys/class/powercap")
_INSIDE_PACKAGE = frozenset({"core", "uncore"})
_NEVER_RESTS = frozenset({"package", "dram", "psys"})
_LIMIT_MARGIN = 2.0
"""A power limit is kept in the mean of seconds: for a moment the power may exceed it."""
_UW_PER_WATT = 1e6
# Above any socket sold, so that only nonsense is rejected; taken where the kernel states no sensible power limit.
_MAX_WATTS = {"package": 1500.0, "dram": 500.0, "core": 1500.0, "uncore": 500.0, "psys": 6000.0}

log = logging.getLogger(__name__)


def _read_text(path: Path) -> str:
    return path.read_text(encoding="ascii", errors="replace").strip()


class RaplSource:
    """Every zone of the tree that could be read when the source was opened."""

    name = NAME

    def __init__(
        self,
        root: Path = DEFAULT_ROOT,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        read_text: Callable[[Path], str] = _read_text,
        coefficients: Coefficients | None = None,
    ) -> None:
        """Find the zones. Raises SourceUnavailable if there are none or none of them may be read."""
        self._clock_ns = clock_ns
        self._read_text = read_text
        self.relative_uncertainty = self.dynamic_uncertainty = (coefficients or load_coefficients()).uncertainty[NAME]
        """The same for both: what idling draws is learned from the same counters."""
        self._zones: dict[Domain, Path] = {}
        denied: Path | None = None
        for zone in sorted(root.glob("intel-rapl:*")):
            try:
                domain = self._describe(zone)
                int(read_text(zone / "energy_uj"))
            except PermissionError:
                denied = zone / "energy_uj"
            except (OSError, ValueError) as error:
                log.warning("rapl: zone %s is left out: %s", zone.name, error)
            else:
                if domain in self._zones:
                    log.warning("rapl: zone %s repeats %s and is left out", zone.name, domain.label)
                elif (twin := self._twin_of(domain, zone / "energy_uj")) is not None:
                    log.warning("rapl: zone %s shows the counter of %s and is left out", zone.name, twin.label)
                else:
                    self._zones[domain] = zone / "energy_uj"
        if not self._zones:
            if denied is not None:
                raise SourceUnavailable(
                    f"{denied}: permission denied; run as root or grant read access (chmod a+r, a udev rule)"
                )
            raise SourceUnavailable(f"{root}: no readable intel-rapl zone (virtual machine or no powercap)")
        if denied is not None:
            log.warning("rapl: %s is left out: permission denied", denied)

    def _describe(self, zone: Path) -> Domain:
        label = self._read_text(zone / "name")
        if zone.name.count(":") > 1:
            parent = zone.with_name(zone.name.rpartition(":")[0])
            device = self._read_text(parent / "name")
            name = label
        else:
            device = label
            name = label.partition("-")[0]
        range_uj = int(self._read_text(zone / "max_energy_range_uj"))
        if range_uj <= 0:
            raise ValueError(f"max_energy_range_uj is {range_uj}")
        overlaps = name in _INSIDE_PACKAGE or name == "psys"
        limit, sold = self._limit_watts(zone), _MAX_WATTS.get(name, 1500.0)
        if limit is not None and _LIMIT_MARGIN * limit > sold:
            limit = None  # a register's highest value, which limits nothing
        return Domain(
            name,
            device,
            NAME,
            wraps_at_uj=range_uj,
            overlaps=overlaps,
            max_watts=sold if limit is None else _LIMIT_MARGIN * limit,
            limit_watts=limit,
            never_rests=name in _NEVER_RESTS,
        )

    def _limit_watts(self, zone: Path) -> float | None:
        """The zone's highest power limit; None where the kernel states none."""
        limits = []
        for pattern in ("constraint_*_max_power_uw", "constraint_*_power_limit_uw"):
            for path in zone.glob(pattern):
                try:
                    limits.append(int(self._read_text(path)))
                except (OSError, ValueError):
                    continue
        highest = max(limits, default=0)
        return highest / _UW_PER_WATT if highest > 0 else None

    def _twin_of(self, domain: Domain, path: Path) -> Domain | None:
        """A zone of the same kind that shows the very same counter: read before and after, it encloses this one's
        value to the microjoule, which two counters of their own do not do."""
        for other, others_path in self._zones.items():
            if other.name != domain.name:
                continue
            before, own = self._read_uj(others_path), self._read_uj(path)
            own_again, after = self._read_uj(path), self._read_uj(others_path)
            if None in (before, own, own_again, after):
                continue
            if 0 < before <= own <= own_again <= after:  # type: ignore[operator]
                return other
        return None

    def _read_uj(self, path: Path) -> int | None:
        try:
            return int(self._read_text(path))
        except (OSError, ValueError):
            return None

    def domains(self) -> list[Domain]:
        """The zones, packages first by the tree's order."""
        return list(self._zones)

    def read(self) -> list[Reading]:
        """The zones that can be read now; one that vanished or may no longer be read is left out."""
        readings = []
        for domain, path in self._zones.items():
            energy_uj = self._read_uj(path)
            if energy_uj is not None and energy_uj >= 0:
                readings.append(Reading(domain, energy_uj, self._clock_ns()))
        return readings
