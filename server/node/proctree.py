"""The serving tree's CPU time: all descendants of the driver, and what replicas name themselves.

A process belongs to the tree if it is a root, if its parent belonged when it was first seen, or if its parent left it
and its session was opened by a process of the tree. Once in, it stays in until it ends, whoever adopts it. CPU time
of a process that ended between two samples comes back through its parent's count of reaped children.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from energy.procfs import ProcessTimes, parse_process_times, read_process_times

_STAT_BYTES = 1024
_RESCAN_SAMPLES = 60
MAX_MEMBERS = 2000


@dataclass(slots=True)
class _Member:
    handle: int
    times: ProcessTimes
    text: bytes | None = None
    """What `stat` said last: it stays the same while a process rests."""
    spent_ns: int = 0


class ServingTree:
    """Follows the processes of the tree by open handles on their `/proc/<pid>/stat`."""

    def __init__(self, roots: tuple[int, ...], proc_root: Path = Path("/proc")) -> None:
        """Find the members; their CPU time so far is the baseline."""
        self._proc = proc_root
        self._roots = set(roots)
        self._members: dict[int, _Member] = {}
        self._strangers: set[int] = set()
        self._sessions: set[int] = set()
        self._seen_roots: set[int] = set()
        self._forks = -1
        self._until_rescan = 0
        self._rooted = False
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

    def sample(self, forks: int) -> int:
        """CPU nanoseconds that the tree spent since the sample before; 0 at the first one.

        `forks` is the machine's count of forks (`/proc/stat`, processes): new members are looked for only when it
        changed, and once a minute in any case.
        """
        first = self._forks < 0
        spent_ns = self._advance()
        self._until_rescan -= 1
        if self._until_rescan <= 0 or self._rooted or forks != self._forks:
            known = self._strangers
            if self._until_rescan <= 0 or self._rooted:
                self._strangers, self._until_rescan, self._rooted = set(), _RESCAN_SAMPLES, False
            spent_ns += self._discover(known)
            self._forks = forks
        if first:
            return 0
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

    def _advance(self) -> int:
        """Read every member again: what they spent, with the last moments of those that ended."""
        spent_ns = 0
        reaped_ns: dict[int, int] = {}
        ended: list[ProcessTimes] = []
        for pid, member in self._members.items():
            try:
                text = os.pread(member.handle, _STAT_BYTES, 0)
                if text == member.text:
                    member.spent_ns = reaped_ns[pid] = 0
                    continue
                times = parse_process_times(pid, text)
            except (OSError, ValueError, IndexError):
                ended.append(member.times)
                continue
            own_ns = max(times.own_ns - member.times.own_ns, 0)
            reaped_ns[pid] = max(times.reaped_ns - member.times.reaped_ns, 0)
            member.times, member.text, member.spent_ns = times, text, own_ns + reaped_ns[pid]
            spent_ns += own_ns
        for times in ended:
            os.close(self._members.pop(times.pid).handle)
            if times.parent in reaped_ns:
                reaped_ns[times.parent] -= times.total_ns
        # A parent that never waits reaps nothing: its difference is negative then and says nothing.
        return spent_ns + sum(value for value in reaped_ns.values() if value > 0)

    def _discover(self, known: set[int]) -> int:
        """Take new members in; returns the CPU time of those that are not `known`, so that started just now."""
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
