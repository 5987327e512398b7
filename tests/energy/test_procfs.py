from __future__ import annotations

import os
from pathlib import Path

import pytest

from energy.domains import SourceUnavailable
from energy.procfs import (
    CpuClock,
    parse_machine_times,
    parse_process_times,
    read_cpu_model,
    read_memory_gib,
    read_process_times,
)
from tests.energy.trees import Clock, FakeProc

SECOND = 1_000_000_000


def test_busy_time_is_what_idle_iowait_and_steal_leave_of_the_time_on_offer(tmp_path: Path) -> None:
    proc, clock = FakeProc(tmp_path), Clock()
    cpu = CpuClock(tmp_path, clock)
    clock.pass_seconds(1)
    # Ticks saw 45 of the 50 centiseconds that were really used; 20 were stolen.
    proc.spend(user=40, system=5, idle=120, iowait=10, steal=20)
    assert cpu.sample()
    assert (cpu.busy_ns, cpu.elapsed_ns, cpu.wall_ns) == (SECOND // 2, 2 * SECOND, SECOND)


def test_busy_columns_are_used_where_the_columns_do_not_add_up(tmp_path: Path) -> None:
    proc, clock = FakeProc(tmp_path), Clock()
    cpu = CpuClock(tmp_path, clock)
    clock.pass_seconds(10)
    proc.spend(user=100, idle=0)
    assert cpu.sample()
    assert cpu.busy_ns == SECOND


def test_counters_that_go_back_never_make_busy_time_go_back(tmp_path: Path) -> None:
    proc, clock = FakeProc(tmp_path), Clock()
    proc.spend(idle=1000, user=1000)
    cpu = CpuClock(tmp_path, clock)
    clock.pass_seconds(1)
    proc.spend(idle=-500, user=-500)
    assert cpu.sample()
    assert 0 <= cpu.busy_ns <= cpu.elapsed_ns


def test_an_unreadable_stat_leaves_the_clock_as_it_was_and_says_so(tmp_path: Path) -> None:
    proc, clock = FakeProc(tmp_path), Clock()
    cpu = CpuClock(tmp_path, clock)
    clock.pass_seconds(1)
    (proc.root / "stat").write_text("")
    assert not cpu.sample()
    assert cpu.busy_ns == cpu.elapsed_ns == 0


@pytest.mark.parametrize("text", [b"", b"intr 1\n", b"cpu a b c d\n"])
def test_something_that_is_no_proc_stat_is_refused(text: bytes) -> None:
    with pytest.raises(SourceUnavailable, match="stat"):
        parse_machine_times(text)


def test_no_proc_at_all_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="Linux /proc"):
        CpuClock(tmp_path / "none")
    with pytest.raises(SourceUnavailable, match="MemTotal"):
        read_memory_gib(tmp_path)


def test_a_command_with_blanks_and_brackets_does_not_shift_the_fields() -> None:
    fields = "S 17 1 42 0 -1 0 0 0 0 0 3 4 5 6 20 0 1 0 99 0 0"
    times = parse_process_times(5, f"5 (evil) R 1 (x)) {fields}\n".encode())
    assert (times.parent, times.session, times.started_ticks) == (17, 42, 99)
    assert (times.own_ns, times.reaped_ns) == (70_000_000, 110_000_000)


def test_this_process_is_found_in_the_real_proc() -> None:
    times = read_process_times(os.getpid())
    assert times is not None
    assert times.parent == os.getppid()
    assert read_process_times(2**22 + 1) is None


def test_arm_processors_are_known_by_implementer_and_part(tmp_path: Path) -> None:
    text = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd40\n\n"
    FakeProc(tmp_path, cpuinfo=text)
    cpu = read_cpu_model(tmp_path)
    assert (cpu.vendor, cpu.family, cpu.model) == ("arm-0x41", 8, 0xD40)
