"""Folders that stand in for /proc and /sys/class/powercap."""

from __future__ import annotations

from pathlib import Path

STAT = "cpu  {user} 0 {system} {idle} {iowait} 0 0 {steal} 0 0\n"
GENOA = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nstepping\t: 1\n\n"


class FakeProc:
    """A /proc folder; times in clock ticks of 10 ms."""

    def __init__(self, root: Path, *, cpus: int = 2, memory_kib: int = 2 * 2**20, cpuinfo: str = GENOA) -> None:
        self.root = root
        self.cpus = cpus
        self.forks = 100
        self.ticks = dict.fromkeys(("user", "system", "idle", "iowait", "steal"), 0)
        root.mkdir(parents=True, exist_ok=True)
        (root / "meminfo").write_text(f"MemTotal: {memory_kib} kB\nMemFree: 1 kB\n")
        (root / "cpuinfo").write_text(cpuinfo)
        self.spend()

    def spend(self, **ticks: int) -> None:
        for name, amount in ticks.items():
            self.ticks[name] += amount
        lines = [STAT.format(**self.ticks)]
        lines += [f"cpu{number} 0 0 0 0 0 0 0 0 0 0\n" for number in range(self.cpus)]
        lines += ["intr 0 0\n", "ctxt 0\n", f"processes {self.forks}\n", "procs_running 1\n"]
        (self.root / "stat").write_text("".join(lines))

    def process(
        self,
        pid: int,
        parent: int,
        *,
        own: int = 0,
        reaped: int = 0,
        session: int = 1,
        started: int = 7,
        command: str = "a (b) c",
    ) -> None:
        folder = self.root / str(pid)
        if not folder.exists():
            folder.mkdir()
            self.forks += 1
        fields = f"S {parent} 1 {session} 0 -1 0 0 0 0 0 {own} 0 {reaped} 0 20 0 1 0 {started} 9 9"
        # In place, as the kernel does it: an open handle sees the new content.
        with (folder / "stat").open("r+" if (folder / "stat").exists() else "w") as stream:
            stream.truncate(0)
            stream.write(f"{pid} ({command}) {fields}\n")

    def end(self, pid: int) -> None:
        stat = self.root / str(pid) / "stat"
        # An open handle of an ended process fails to read; an empty file fails to parse.
        stat.write_text("")
        stat.unlink()
        stat.parent.rmdir()


class Clock:
    """Nanoseconds that a test moves."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def pass_seconds(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def write_zone(root: Path, zone: str, name: str, energy_uj: int = 0, range_uj: int = 262_143_328_850) -> Path:
    folder = root / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"
