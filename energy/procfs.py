"""Reads the few files of `/proc` that metering needs. The root is a parameter, so that a folder can stand in.

Formats: proc(5). CPU times there are counted in clock ticks of 1/USER_HZ seconds (10 ms nearly everywhere).
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from energy.domains import NANOSECONDS_PER_SECOND, SourceUnavailable

STAT_BYTES = 1024
"""More than `/proc/<pid>/stat` holds: 52 numbers and a name of 64 bytes at most."""
TICK_NS = NANOSECONDS_PER_SECOND // os.sysconf("SC_CLK_TCK")
_SUM_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class MachineTimes:
    """The first lines of `/proc/stat`, cumulative since boot.

    `ran_ns` is the time that ticks saw working (steal and idle excluded), `rested_ns` idle, iowait and steal.
    """

    ran_ns: int
    rested_ns: int
    cpus: int
    forks: int


@dataclass(frozen=True, slots=True)
class ProcessTimes:
    """The fields of `/proc/<pid>/stat` that metering needs; CPU times in nanoseconds."""

    pid: int
    parent: int
    session: int
    own_ns: int
    """CPU time of the process and its threads."""
    reaped_ns: int
    """CPU time of children that ended and were waited for, theirs included."""
    started_ticks: int
    """Start time since boot; with the pid it names a process for good."""

    @property
    def total_ns(self) -> int:
        """Own CPU time and that of reaped children."""
        return self.own_ns + self.reaped_ns


@dataclass(frozen=True, slots=True)
class CpuModel:
    """What `/proc/cpuinfo` says of the first processor; fields that are not there are empty or -1."""

    vendor: str
    family: int
    model: int
    stepping: int
    name: str


def parse_machine_times(text: bytes) -> MachineTimes:
    """Parse the content of `/proc/stat`. Raises SourceUnavailable if the `cpu` line is not as documented."""
    # Only the lines that are wanted are taken apart: those of interrupts hold thousands of numbers on a large machine.
    fields = text[: text.find(b"\n") + 1].split()
    if len(fields) < 5 or fields[0] != b"cpu":
        raise SourceUnavailable("stat: the first line is no 'cpu' line; a Linux /proc is needed")
    try:
        ticks = [int(value) for value in fields[1:9]]
    except ValueError:
        raise SourceUnavailable("stat: the 'cpu' line holds no numbers; a Linux /proc is needed") from None
    ticks += [0] * (8 - len(ticks))
    user, nice, system, idle, iowait, irq, softirq, steal = ticks
    at = text.rfind(b"\nprocesses ")
    forks = int(text[at + 11 : text.index(b"\n", at + 1)]) if at >= 0 else 0
    return MachineTimes(
        ran_ns=(user + nice + system + irq + softirq) * TICK_NS,
        rested_ns=(idle + iowait + steal) * TICK_NS,
        cpus=max(text.count(b"\ncpu"), 1),
        forks=forks,
    )


def parse_process_times(pid: int, text: bytes) -> ProcessTimes:
    """Parse the content of `/proc/<pid>/stat`; the command may hold blanks and brackets. Raises
    ValueError.
    """
    fields = text[text.rindex(b")") + 2 :].split(None, 20)
    return ProcessTimes(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        own_ns=(int(fields[11]) + int(fields[12])) * TICK_NS,
        reaped_ns=(int(fields[13]) + int(fields[14])) * TICK_NS,
        started_ticks=int(fields[19]),
    )


def read_process_times(pid: int, root: Path = Path("/proc")) -> ProcessTimes | None:
    """Times of a process now, or None if it is gone."""
    try:
        handle = os.open(f"{root}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return parse_process_times(pid, os.read(handle, STAT_BYTES))
        finally:
            os.close(handle)
    except (OSError, ValueError, IndexError):
        return None


def read_memory_gib(root: Path = Path("/proc")) -> float:
    """Installed memory in GiB by `/proc/meminfo`. Raises SourceUnavailable if it is not there."""
    try:
        for line in (root / "meminfo").read_bytes().splitlines():
            if line.startswith(b"MemTotal:"):
                return int(line.split()[1]) / 2**20
    except (OSError, ValueError, IndexError):
        pass
    raise SourceUnavailable(f"{root}/meminfo: no MemTotal; a Linux /proc is needed")


def read_cpu_model(root: Path = Path("/proc")) -> CpuModel:
    """The processor's vendor, family, model and stepping; on Arm its implementer and part number."""
    try:
        text = (root / "cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() and found:
            break
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    if "CPU implementer" in found:
        vendor = f"arm-{found['CPU implementer'].lower()}"
        return CpuModel(vendor, _number(found.get("CPU architecture")), _number(found.get("CPU part")), -1, "")
    return CpuModel(
        vendor=found.get("vendor_id", ""),
        family=_number(found.get("cpu family")),
        model=_number(found.get("model")),
        stepping=_number(found.get("stepping")),
        name=found.get("model name", ""),
    )


def _number(text: str | None) -> int:
    try:
        return int(text or "", 0)
    except ValueError:
        return -1


class CpuClock:
    """Cumulative CPU time that the whole machine was busy, and the time that passed, since the first sample.

    Busy time is what is left of `cpus x elapsed` after idle, iowait and steal: kernels keep those three to
    the microsecond, whereas the busy columns are sampled 100 times a second and miss short bursts (5 % too
    little was seen). Where the columns do not add up to the elapsed time (some containers) the busy columns
    are used.
    """

    def __init__(self, proc_root: Path = Path("/proc"), clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Take the first sample. Raises SourceUnavailable if `proc_root/stat` cannot be read."""
        self._path = str(proc_root / "stat")
        self._clock_ns = clock_ns
        self.busy_ns = 0
        self.elapsed_ns = 0
        """CPU nanoseconds on offer since the first sample: elapsed time times processors."""
        self.wall_ns = 0
        self._text = b""
        try:
            # Kept open: the kernel makes the content anew at every read, and finding the file costs as much as reading.
            self._handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._handle)
            self._last = self._read()
        except OSError as error:
            raise SourceUnavailable(f"{self._path}: {error.strerror}; a Linux /proc is needed") from None
        self.time_ns = clock_ns()
        self.cpus = self._last.cpus
        self.forks = self._last.forks

    def _read(self) -> MachineTimes:
        size = 2 * len(self._text) or 65536
        while len(text := os.pread(self._handle, size, 0)) == size:
            size *= 2
        self._text = text
        return parse_machine_times(text)

    def sample(self) -> bool:
        """Advance the counters to now; False if `/proc/stat` could not be read (they then stay as they
        are).
        """
        try:
            now = self._read()
        except (OSError, SourceUnavailable):
            return False
        time_ns = self._clock_ns()
        wall_ns = max(time_ns - self.time_ns, 0)
        offered_ns = wall_ns * now.cpus
        ran_ns = max(now.ran_ns - self._last.ran_ns, 0)
        rested_ns = max(now.rested_ns - self._last.rested_ns, 0)
        busy_ns = offered_ns - rested_ns
        slack_ns = _SUM_TOLERANCE * offered_ns + 2 * now.cpus * TICK_NS
        if abs(ran_ns + rested_ns - offered_ns) > slack_ns:
            busy_ns = ran_ns
        self.busy_ns += min(max(busy_ns, 0), offered_ns)
        self.elapsed_ns += offered_ns
        self.wall_ns += wall_ns
        self._last, self.time_ns = now, time_ns
        self.cpus, self.forks = now.cpus, now.forks
        return True
