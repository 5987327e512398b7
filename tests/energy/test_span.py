from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from energy.coefficients import load_coefficients
from energy.meter import Meter
from energy.procfs import read_cpu_model
from energy.sources import select_sources
from energy.span import Machine, Sample, dynamic_joules_per_cpu_second, measure_process
from tests.energy.trees import FakeProc, write_zone

BURN = "import time\nwhile time.process_time() < 0.3: pass"


def no_nvml() -> object:
    raise ImportError("none")


def spin(cpu_seconds: float) -> None:
    import time

    end = time.process_time() + cpu_seconds
    while time.process_time() < end:
        pass


def test_a_span_is_cpu_time_times_joules_per_cpu_second() -> None:
    with measure_process() as span:
        spin(0.1)
    assert span.cpu_seconds >= 0.1
    assert span.wall_seconds > 0
    assert span.dynamic_joules is not None
    if span.source == "estimated":
        assert span.dynamic_joules == pytest.approx(span.cpu_seconds * dynamic_joules_per_cpu_second())
        assert span.relative_uncertainty == 0.5


def test_children_are_counted_only_if_asked_for() -> None:
    with measure_process() as everything, measure_process(children=False) as alone:
        subprocess.run([sys.executable, "-c", BURN], check=True)
    assert everything.cpu_seconds >= 0.15  # the kernel takes from it what the host stole
    assert alone.cpu_seconds < 0.15


def test_a_child_that_outlives_the_span_is_counted_as_far_as_it_got() -> None:
    code = BURN + "\nprint('burnt', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        with measure_process() as span:
            child.stdout.readline()
        with measure_process() as later:
            pass
        child.kill()
    assert span.cpu_seconds >= 0.05
    assert later.cpu_seconds < 0.25


def test_an_exception_inside_still_fills_the_span() -> None:
    def fail() -> None:
        spin(0.02)
        raise KeyError

    with pytest.raises(KeyError), measure_process() as span:
        fail()
    assert span.cpu_seconds >= 0.02


def rapl_machine(tmp_path: Path) -> tuple[Machine, Path]:
    FakeProc(tmp_path / "proc")
    counter = write_zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 0)
    chosen = select_sources(proc_root=tmp_path / "proc", powercap_root=tmp_path / "powercap", load_nvml=no_nvml)
    cpu = load_coefficients().for_cpu(read_cpu_model(tmp_path / "proc"))
    return Machine(chosen, cpu, Meter(chosen.sources)), counter


def test_under_rapl_a_process_owes_its_share_of_the_energy_above_idling(tmp_path: Path) -> None:
    machine, _ = rapl_machine(tmp_path)
    begin = Sample(busy_ns=0, offered_ns=0, energy_uj=0, missed=0)
    end = Sample(busy_ns=4 * 10**9, offered_ns=20 * 10**9, energy_uj=200_000_000, missed=0)
    # Two processors for 10 s, busy 4 s, 1 s of it ours: dynamic share by Pmin 0.739 and Pmax 2.282.
    dynamic_share = 4 * (2.282 - 0.739) / (4 * (2.282 - 0.739) + 20 * 0.739)
    assert machine.dynamic_joules(begin, end, 1.0) == pytest.approx(200 * dynamic_share / 4)
    assert machine.source == "rapl"
    assert 0.05 < machine.relative_uncertainty < 0.5


def test_under_rapl_a_counter_that_was_missing_makes_the_joules_unknown(tmp_path: Path) -> None:
    machine, counter = rapl_machine(tmp_path)
    with measure_process(machine=machine) as span:
        counter.unlink()
    assert span.dynamic_joules is None
    assert span.cpu_seconds >= 0


def test_under_rapl_a_missing_counter_of_which_no_joule_counts_takes_nothing_away(tmp_path: Path) -> None:
    psys = write_zone(tmp_path / "powercap", "intel-rapl:1", "psys", 0)
    machine, counter = rapl_machine(tmp_path)
    with measure_process(machine=machine) as span:
        spin(0.02)
        psys.unlink()
        counter.write_text("5000000\n")
    assert span.dynamic_joules is not None
    assert 0 < span.dynamic_joules <= 5


def test_under_rapl_a_span_reads_the_counter(tmp_path: Path) -> None:
    machine, counter = rapl_machine(tmp_path)
    with measure_process(machine=machine) as span:
        spin(0.02)
        counter.write_text("5000000\n")
    assert span.dynamic_joules is not None
    assert 0 < span.dynamic_joules <= 5
