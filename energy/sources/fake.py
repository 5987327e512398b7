"""A source whose counters a test moves by hand; it behaves as the real ones do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from energy.domains import MICROJOULES_PER_JOULE, Domain, Reading

NAME = "fake"


class FakeSource:
    """Counters in memory: `add` joules to one, `hide` and `show` it, `set_counter` it outright."""

    name = NAME

    def __init__(
        self,
        domains: Sequence[Domain] = (Domain("package", "package-0", NAME),),
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        relative_uncertainty: float = 0.0,
    ) -> None:
        """Start every counter at 0."""
        self._energy_uj = dict.fromkeys(domains, 0)
        self._idle_uj: dict[Domain, int] = {}
        self._hidden: set[Domain] = set()
        self._clock_ns = clock_ns
        self.relative_uncertainty = self.dynamic_uncertainty = relative_uncertainty

    def domains(self) -> list[Domain]:
        """As given, hidden ones included."""
        return list(self._energy_uj)

    def add(self, domain: Domain, joules: float, idle_joules: float | None = None) -> None:
        """Draw energy; the counter wraps where the domain says so."""
        energy_uj = self._energy_uj[domain] + round(joules * MICROJOULES_PER_JOULE)
        if domain.wraps_at_uj is not None and energy_uj > domain.wraps_at_uj:
            energy_uj -= domain.wraps_at_uj
        self._energy_uj[domain] = energy_uj
        if idle_joules is not None:
            idle_uj = self._idle_uj.get(domain, 0) + round(idle_joules * MICROJOULES_PER_JOULE)
            self._idle_uj[domain] = idle_uj

    def counter(self, domain: Domain) -> int:
        """Where the counter stands, hidden or not."""
        return self._energy_uj[domain]

    def set_counter(self, domain: Domain, energy_uj: int) -> None:
        """Put the counter where a reset or a fault would."""
        self._energy_uj[domain] = energy_uj

    def hide(self, domain: Domain) -> None:
        """Let the counter go missing."""
        self._hidden.add(domain)

    def show(self, domain: Domain) -> None:
        """Let it come back, with what it counted meanwhile."""
        self._hidden.discard(domain)

    def read(self) -> list[Reading]:
        """The counters that are not hidden."""
        now_ns = self._clock_ns()
        return [
            Reading(domain, energy_uj, now_ns, self._idle_uj.get(domain))
            for domain, energy_uj in self._energy_uj.items()
            if domain not in self._hidden
        ]
