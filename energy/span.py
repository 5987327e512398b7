"""Joules of one process over one piece of work: CPU time times what a second of CPU time adds to idling.

with measure_process() as span:
    work()
print(span.cpu_seconds, span.dynamic_joules, span.source, span.relative_uncertainty)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from energy.coefficients import CpuCoefficients, load_coefficients
from energy.domains import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, Domain
from energy.meter import Meter
from energy.procfs import parse_process_times, read_cpu_model
from energy.sources import Selection, select_sources

# Often enough for any RAPL counter: the smallest ranges last minutes at full power.
_KEEP_UP_SECONDS = 20.0


@dataclass
class Span:
    """What a process did between entering and leaving; the figures are final once the block was left."""

    cpu_seconds: float = 0.0
    """User and system time of the process, of its threads and, if asked for, of its children."""
    wall_seconds: float = 0.0
    dynamic_joules: float | None = None
    """Joules above idling; None if the counter gave no figure for the whole span."""
    source: str = "estimated"
    relative_uncertainty: float = 0.0
    """Half width of the error band of `dynamic_joules`, as a share."""


def dynamic_joules_per_cpu_second(proc_root: Path = Path("/proc")) -> float:
    """Joules that a second of CPU time adds to idling on this CPU family, by the estimated model: Pmax -
    Pmin.
    """
    return load_coefficients().for_cpu(read_cpu_model(proc_root)).dynamic_watts


@contextmanager
def measure_process(children: bool = True, *, machine: Machine | None = None) -> Iterator[Span]:
    """Measure the calling process, with `children` also its descendants, living and reaped.

    Under `estimated` the joules are CPU-seconds x (Pmax - Pmin). Under `rapl` they are the process's share,
    by CPU time, of the measured energy above idling; the idle part follows from the CPU family's Pmin :
    Pmax at the span's use of the processors. A child that nobody waited for and that ended within the span
    is not seen.
    """
    meter = machine or this_machine()
    span = Span(source=meter.source, relative_uncertainty=meter.relative_uncertainty)
    started = time.perf_counter()
    meter.enter()
    begin = meter.sample()
    cpu_ns = _cpu_ns(children)
    try:
        yield span
    finally:
        span.cpu_seconds = max(_cpu_ns(children) - cpu_ns, 0) / NANOSECONDS_PER_SECOND
        end = meter.sample()
        meter.leave()
        span.wall_seconds = time.perf_counter() - started
        span.dynamic_joules = meter.dynamic_joules(begin, end, span.cpu_seconds)


@dataclass(frozen=True, slots=True)
class Sample:
    """Cumulative figures of the machine: CPU time busy and on offer, energy of its processors, counters
    missed.
    """

    busy_ns: int
    offered_ns: int
    energy_uj: int
    missed: int


class Machine:
    """The energy meter behind the spans of a process; nested and concurrent spans share it."""

    def __init__(self, selection: Selection, cpu: CpuCoefficients, meter: Meter | None = None) -> None:
        """`meter` reads the processors' counters; None where they are estimated. `cpu` gives the idle
        share.
        """
        self._selection = selection
        self._cpu = cpu
        self._lock = threading.Lock()
        self._users = 0
        self._idle = threading.Event()
        self._meter = meter
        self.source = selection.cpu_source.name
        self.relative_uncertainty = selection.cpu_source.dynamic_uncertainty
        if meter is not None:
            meter.tick()
            bound = load_coefficients().uncertainty["span_without_idle"]
            self.relative_uncertainty = max(self.relative_uncertainty, bound)

    def enter(self) -> None:
        """Begin a span: while any is open, a wrapping counter is read often enough to see every wrap."""
        with self._lock:
            self._users += 1
            if self._users > 1 or self._meter is None:
                return
            self._idle = threading.Event()
            threading.Thread(target=self._keep_up, args=(self._idle,), daemon=True, name="energy-span").start()

    def leave(self) -> None:
        """End a span."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._idle.set()

    def _keep_up(self, stop: threading.Event) -> None:
        while not stop.wait(_KEEP_UP_SECONDS):
            self.sample()

    def sample(self) -> Sample:
        """Read everything now."""
        with self._lock:
            clock = self._selection.clock
            clock.sample()
            energy_uj, missed = 0, 0
            if self._meter is not None:
                self._meter.tick()
                totals, gaps = self._meter.total_uj, self._meter.missing_ticks
                energy_uj = sum(uj for domain, uj in totals.items() if _counts(domain))
                missed = sum(ticks for (domain, _), ticks in gaps.items() if _counts(domain))
            return Sample(clock.busy_ns, clock.elapsed_ns, energy_uj, missed)

    def dynamic_joules(self, begin: Sample, end: Sample, cpu_seconds: float) -> float | None:
        """Dynamic joules of `cpu_seconds` of CPU time spent between two samples; None if a counter was
        missed.
        """
        if self._meter is None:
            return cpu_seconds * self._cpu.dynamic_watts
        if end.missed > begin.missed:
            return None
        busy_s = max((end.busy_ns - begin.busy_ns) / NANOSECONDS_PER_SECOND, cpu_seconds)
        offered_s = (end.offered_ns - begin.offered_ns) / NANOSECONDS_PER_SECOND
        if busy_s <= 0:
            return 0.0
        # The model gives proportions only; the counter gives the scale.
        modelled_dynamic = self._cpu.dynamic_watts * busy_s
        modelled = self._cpu.min_watts * max(offered_s, busy_s) + modelled_dynamic
        joules = (end.energy_uj - begin.energy_uj) / MICROJOULES_PER_JOULE
        return joules * (modelled_dynamic / modelled) * (cpu_seconds / busy_s)


def _counts(domain: Domain) -> bool:
    """Whether a span is made of this domain's joules."""
    return domain.on_cpu and not domain.overlaps


@cache
def this_machine() -> Machine:
    """The machine this process runs on, opened once."""
    selection = select_sources()
    meter = None if selection.estimated else Meter((selection.cpu_source,))
    return Machine(selection, load_coefficients().for_cpu(read_cpu_model()), meter)


def _cpu_ns(children: bool) -> int:
    """CPU time of this process so far, with its reaped and living descendants if asked for."""
    own_ns = time.process_time_ns()
    if not children:
        return own_ns
    times = os.times()
    reaped_ns = int((times.children_user + times.children_system) * NANOSECONDS_PER_SECOND)
    return own_ns + reaped_ns + _living_descendants_ns(os.getpid())


def _living_descendants_ns(root_pid: int, proc_root: Path = Path("/proc")) -> int:
    children: dict[int, list[tuple[int, int]]] = {}
    for entry in proc_root.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            times = parse_process_times(int(entry.name), (entry / "stat").read_bytes())
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(times.parent, []).append((times.pid, times.total_ns))
    total_ns, frontier = 0, [root_pid]
    while frontier:
        for pid, spent_ns in children.pop(frontier.pop(), ()):
            total_ns += spent_ns
            frontier.append(pid)
    return total_ns
