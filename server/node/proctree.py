"""The serving tree's CPU time: all descendants of the driver, and what replicas name themselves.

A process belongs to the tree if it is a root, if its parent belonged when it was first seen, or if its parent left it
and its session was opened by a process of the tree. Once in, it stays in until it ends, whoever adopts it. CPU time
of a process that ended between two samples comes back through its parent's count of reaped children.

A sample reads the roots, which are the replicas among others, and everybody where that is asked for or a process ended.
New processes are looked for every few samples if the number of processes changed, more rarely if it did not. What was
spent meanwhile is counted in full, up to that much later.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from energy.procfs import STAT_BYTES, ProcessTimes, parse_process_times, read_process_times

RESCAN_SAMPLES = 300
UNCHANGED_SAMPLES = 30
"""How often new processes are looked for while as many came as went: listing them costs as much as reading twenty."""
MAX_MEMBERS = 2000
_NO_LINKS = 2
"""Some file systems do not count a folder's folders."""


@dataclass(slots=True)
class _Member:
    handle: int
    times: ProcessTimes
    text: bytes | None = None
    """What `stat` said last: it stays the same while a process rests."""
    spent_ns: int = 0


class ServingTree:
    """Follows the processes of the tree by open handles on their `/proc/<pid>/stat`."""

    def __init__(
        self,
        roots: tuple[int, ...],
        proc_root: Path = Path("/proc"),
        *,
        discover_samples: int = 5,
    ) -> None:
        """The members' CPU time at the first sample is the baseline. New ones are looked for every `discover_samples`
        at most."""
        self._proc = proc_root
        self._discover_samples = discover_samples
        self._roots = set(roots)
        self._members: dict[int, _Member] = {}
        self._strangers: set[int] = set()
        self._sessions: set[int] = set()
        self._seen_roots: set[int] = set()
        self._forks = -1
        self._links = 0
        """Of `/proc`, when processes were last listed: one for each."""
        self._until_rescan = self._until_discovery = self._until_unchanged = 0
        self._rooted = False
        self._complete = True
        """Whether the latest sample was everybody's."""
        self.cpu_ns = 0
        """CPU time that the tree spent since the first sample."""

    def __len__(self) -> int:
        """Processes in the tree."""
        return len(self._members)

    def add_root(self, pid: int) -> None:
        """Take `pid` and its descendants in from now on; what they spent before is not counted."""
        if pid not in self._roots:
            self._roots.add(pid)
            if pid in self._members:
                self._seen_roots.add(pid)
            else:
                self._rooted = True

    def spent_ns(self, pid: int) -> int | None:
        """CPU time a member and its reaped children spent between the last two samples; None if not a member."""
        member = self._members.get(pid)
        return member.spent_ns if member else None

    def is_alive(self, pid: int, started_ticks: int) -> bool | None:
        """Whether that very process lives; None if this `/proc` does not show it (another PID namespace)."""
        member = self._members.get(pid)
        times = member.times if member else read_process_times(pid, self._proc)
        if times is None:
            return False if pid in self._seen_roots else None
        return times.started_ticks == started_ticks

    def sample(self, forks: int, *, everybody: bool = True) -> int:
        """CPU nanoseconds that the tree was seen to spend since the sample before; 0 at the first one. Without
        `everybody` it is the roots' alone, and that of the others comes with the next sample that reads them.

        `forks` is the machine's count of forks (`/proc/stat`, processes): new members are looked for only when it
        changed, every `discover_samples` at most, and every RESCAN_SAMPLES in any case.
        """
        first = self._forks < 0
        spent_ns = self._advance(everybody)
        self._until_rescan -= 1
        self._until_discovery -= 1
        self._until_unchanged -= 1
        rescan = self._until_rescan <= 0 or self._rooted
        if rescan or self._may_find(forks):
            known = self._strangers
            if rescan:
                self._strangers, self._until_rescan, self._rooted = set(), RESCAN_SAMPLES, False
            spent_ns += self._discover(known)
            self._forks, self._until_discovery = forks, self._discover_samples
            self._until_unchanged = UNCHANGED_SAMPLES
        if first:
            return 0
        self.cpu_ns += spent_ns
        return spent_ns

    def catch_up(self) -> int:
        """CPU nanoseconds of those whom the latest sample left out; 0 if it was everybody's, or was caught up with."""
        if self._complete:
            return 0
        self._complete = True
        others = [pid for pid in self._members if pid not in self._roots]
        spent_ns = self._account(others, self._roots & self._members.keys())
        self.cpu_ns += spent_ns
        return spent_ns

    def lifetime_ns(self) -> int:
        """CPU nanoseconds of the members since each began, by the last sample, with the children that they reaped."""
        return sum(member.times.total_ns for member in self._members.values())

    def close(self) -> None:
        """Close the handles."""
        for member in self._members.values():
            os.close(member.handle)
        self._members.clear()

    def _may_find(self, forks: int) -> bool:
        """Whether listing the processes may show new ones: threads are counted as forks, too, and only the number of
        processes can be had for nothing (as `/proc`'s links)."""
        if forks == self._forks or self._until_discovery > 0:
            return False
        self._until_discovery = self._discover_samples
        links = os.stat(self._proc).st_nlink
        return links != self._links or links <= _NO_LINKS or self._until_unchanged <= 0

    def _advance(self, everybody: bool) -> int:
        """Read members again: what they spent, with the last moments of those that ended."""
        self._complete = everybody
        for member in self._members.values():
            member.spent_ns = 0
        if everybody:
            return self._account(list(self._members), ())
        roots = self._roots & self._members.keys()
        return self._account(roots, self._members.keys() - roots)

    def _account(self, pids: Iterable[int], others: Iterable[int]) -> int:
        """What these spent; `others` are read, too, if there is more to it."""
        reaped_ns: dict[int, int] = {}
        ended: list[ProcessTimes] = []
        spent_ns = self._read(pids, reaped_ns, ended)
        if ended or any(reaped_ns.values()):
            # Who was reaped, and by whom, has to be known of the same moment, or its time would be counted twice.
            spent_ns += self._read(others, reaped_ns, ended)
        for times in ended:
            os.close(self._members.pop(times.pid).handle)
            if times.parent in reaped_ns:
                reaped_ns[times.parent] -= times.total_ns
        # A parent that never waits reaps nothing: its difference is negative then and says nothing.
        return spent_ns + sum(value for value in reaped_ns.values() if value > 0)

    def _read(self, pids: Iterable[int], reaped_ns: dict[int, int], ended: list[ProcessTimes]) -> int:
        """CPU time that these spent themselves; fills in what each reaped, and who ended."""
        spent_ns = 0
        for pid in pids:
            member = self._members[pid]
            try:
                text = os.pread(member.handle, STAT_BYTES, 0)
                if text == member.text:
                    reaped_ns[pid] = 0
                    continue
                times = parse_process_times(pid, text)
            except (OSError, ValueError, IndexError):
                ended.append(member.times)
                continue
            own_ns = max(times.own_ns - member.times.own_ns, 0)
            reaped_ns[pid] = max(times.reaped_ns - member.times.reaped_ns, 0)
            member.times, member.text = times, text
            member.spent_ns += own_ns + reaped_ns[pid]
            spent_ns += own_ns
        return spent_ns

    def _discover(self, known: set[int]) -> int:
        """Take new members in; returns the CPU time of those that are not `known`, so that started just now."""
        self._links = os.stat(self._proc).st_nlink  # before: who comes in between is looked for again
        pids = {int(name) for name in os.listdir(self._proc) if name.isdecimal()}
        self._strangers &= pids
        fresh = [
            times
            for pid in sorted(pids - self._strangers - self._members.keys())
            if (times := read_process_times(pid, self._proc)) is not None
        ]
        born_ns = 0
        while True:
            found = [times for times in fresh if self._belongs(times)]
            for times in found:
                if len(self._members) < MAX_MEMBERS and self._take(times) and times.pid not in known:
                    born_ns += times.total_ns
                    self._members[times.pid].spent_ns = times.total_ns
            fresh = [times for times in fresh if times.pid not in self._members and times not in found]
            if not found:
                break
        self._strangers |= {times.pid for times in fresh}
        return born_ns

    def _belongs(self, times: ProcessTimes) -> bool:
        if times.pid in self._roots or times.parent in self._members:
            return True
        orphan = times.parent <= 1
        return orphan and times.session in self._sessions

    def _take(self, times: ProcessTimes) -> bool:
        try:
            handle = os.open(self._proc / str(times.pid) / "stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        self._members[times.pid] = _Member(handle, times)
        if times.pid in self._roots:
            self._seen_roots.add(times.pid)
        if times.session == times.pid:
            self._sessions.add(times.session)
        return True
