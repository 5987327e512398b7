from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from energy.domains import EnergySource, SourceUnavailable
from energy.meter import Meter
from energy.procfs import CpuClock
from energy.sources import select_sources
from energy.sources.estimated import EstimatedSource
from energy.sources.fake import FakeSource
from energy.sources.nvml import NvmlSource
from energy.sources.rapl import RaplSource
from tests.energy.trees import Clock, FakeProc, write_zone


class NVMLError(Exception):
    pass


class FakeNvml:
    """The part of `pynvml` that is used."""

    NVMLError = NVMLError

    def __init__(self, energies_mj: list[int | None], mig: bool = False, limit_mw: int | None = 700_000) -> None:
        self.limit_mw = limit_mw
        self.samples: dict[int, list[SimpleNamespace]] = {}
        self.energies_mj = energies_mj
        self.mig = mig
        self.shut = False

    def nvmlInit(self) -> None:
        if not self.energies_mj:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.energies_mj)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        value = self.energies_mj[handle]
        if value is None:
            raise NVMLError("Not Supported")
        return value

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: int) -> tuple[int, int]:
        if self.limit_mw is None:
            raise NVMLError("Not Supported")
        return 100_000, self.limit_mw

    def nvmlDeviceGetProcessUtilization(self, handle: int, since_us: int) -> list[Any]:
        found = [sample for sample in self.samples.get(handle, []) if sample.timeStamp > since_us]
        if not found:
            raise NVMLError("Not Found")
        return found

    def nvmlDeviceGetMigMode(self, handle: int) -> tuple[int, int]:
        return int(self.mig), int(self.mig)

    def nvmlShutdown(self) -> None:
        self.shut = True


def no_nvml() -> Any:
    raise ImportError("No module named 'pynvml'")


@pytest.fixture
def two_sockets(tmp_path: Path) -> Path:
    root = tmp_path / "powercap"
    write_zone(root, "intel-rapl:0", "package-0", 1000)
    write_zone(root, "intel-rapl:0:0", "core", 400)
    write_zone(root, "intel-rapl:0:1", "dram", 50, range_uj=65_712_999_613)
    write_zone(root, "intel-rapl:1", "package-1", 2000)
    write_zone(root, "intel-rapl:1:0", "dram", 60)
    write_zone(root, "intel-rapl:2", "psys", 5000)
    return root


def test_rapl_reads_packages_and_dram_as_parts_and_core_and_psys_as_overlaps(two_sockets: Path) -> None:
    source = RaplSource(two_sockets, clock_ns=Clock())
    found = {(r.domain.device, r.domain.name): (r.energy_uj, r.domain.overlaps) for r in source.read()}
    assert found == {
        ("package-0", "package"): (1000, False),
        ("package-0", "core"): (400, True),
        ("package-0", "dram"): (50, False),
        ("package-1", "package"): (2000, False),
        ("package-1", "dram"): (60, False),
        ("psys", "psys"): (5000, True),
    }
    assert isinstance(source, EnergySource)


def test_a_counter_of_the_tree_that_wraps_loses_nothing_and_one_that_was_reset_is_missing(two_sockets: Path) -> None:
    clock, package, dram = Clock(), two_sockets / "intel-rapl:0/energy_uj", two_sockets / "intel-rapl:1:0/energy_uj"
    package.write_text(f"{262_143_328_850 - 300}\n")
    dram.write_text("100000000000\n")
    meter = Meter([RaplSource(two_sockets, clock_ns=clock)])
    meter.tick()
    clock.pass_seconds(1)
    package.write_text("200\n")
    dram.write_text("7\n")
    tick = meter.tick()
    deltas = {(d.domain.device, d.domain.name): d.energy_uj for d in tick.deltas}
    assert deltas["package-0", "package"] == 500
    assert [(m.domain.device, m.domain.name, m.reason) for m in tick.missing if m.domain.name == "dram"] == [
        ("package-0", "dram", "frozen"),
        ("package-1", "dram", "implausible"),
    ]
    clock.pass_seconds(1)
    dram.write_text("1007\n")
    assert {(d.domain.device, d.domain.name): d.energy_uj for d in meter.tick().deltas}["package-1", "dram"] == 1000


def test_rapl_leaves_out_what_permission_is_lost_for_while_it_runs(two_sockets: Path) -> None:
    denied: set[str] = set()

    def read_text(path: Path) -> str:
        if str(path.parent.name) in denied:
            raise PermissionError(13, "Permission denied", str(path))
        return path.read_text().strip()

    source = RaplSource(two_sockets, clock_ns=Clock(), read_text=read_text)
    assert len(source.read()) == 6
    denied.add("intel-rapl:0")
    assert ("package-0", "package") not in {(r.domain.device, r.domain.name) for r in source.read()}
    denied.clear()
    assert len(source.read()) == 6


def test_rapl_leaves_out_a_zone_that_vanished_or_holds_nonsense(two_sockets: Path) -> None:
    source = RaplSource(two_sockets, clock_ns=Clock())
    (two_sockets / "intel-rapl:1" / "energy_uj").unlink()
    (two_sockets / "intel-rapl:0:1" / "energy_uj").write_text("-5\n")
    (two_sockets / "intel-rapl:2" / "energy_uj").write_text("what\n")
    assert {(r.domain.device, r.domain.name) for r in source.read()} == {
        ("package-0", "package"),
        ("package-0", "core"),
        ("package-1", "dram"),
    }


def test_rapl_names_what_would_grant_permission(two_sockets: Path) -> None:
    def read_text(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return path.read_text().strip()

    with pytest.raises(SourceUnavailable, match=r"permission denied; .*chmod"):
        RaplSource(two_sockets, read_text=read_text)


def test_the_copies_of_one_counter_in_the_dies_of_a_package_are_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_zone(tmp_path, "intel-rapl:0", "package-0-die-0", 5_000_000)
    write_zone(tmp_path, "intel-rapl:1", "package-0-die-1", 5_000_000)
    write_zone(tmp_path, "intel-rapl:2", "package-1-die-0", 7_000_000)
    write_zone(tmp_path, "intel-rapl:3", "package-1-die-1", 8_000_000)
    with caplog.at_level(logging.WARNING, logger="energy"):
        source = RaplSource(tmp_path, clock_ns=Clock())
    assert [d.device for d in source.domains()] == ["package-0-die-0", "package-1-die-0", "package-1-die-1"]
    assert "intel-rapl:1 shows the counter of rapl/package-0-die-0/package" in caplog.text


def test_a_copy_is_found_although_the_counter_moves_while_it_is_read(tmp_path: Path) -> None:
    write_zone(tmp_path, "intel-rapl:0", "package-0-die-0")
    write_zone(tmp_path, "intel-rapl:1", "package-0-die-1")
    energies = iter(range(10**6, 10**9, 777))

    def read_text(path: Path) -> str:
        return str(next(energies)) if path.name == "energy_uj" else path.read_text().strip()

    assert [d.device for d in RaplSource(tmp_path, read_text=read_text).domains()] == ["package-0-die-0"]


def test_what_is_plausible_follows_the_power_limits_of_a_zone(two_sockets: Path) -> None:
    (two_sockets / "intel-rapl:0" / "constraint_0_max_power_uw").write_text("165000000\n")
    (two_sockets / "intel-rapl:0" / "constraint_1_power_limit_uw").write_text("200000000\n")
    (two_sockets / "intel-rapl:1" / "constraint_0_max_power_uw").write_text("0\n")
    (two_sockets / "intel-rapl:1" / "constraint_1_max_power_uw").write_text("4095000000\n")
    watts = {(d.device, d.name): (d.limit_watts, d.max_watts) for d in RaplSource(two_sockets).domains()}
    assert (watts["package-0", "package"], watts["package-1", "package"]) == ((200.0, 400.0), (None, 1500.0))


def test_nvml_takes_what_is_plausible_from_the_boards_limit() -> None:
    for limit_mw, limits in ((700_000, (700.0, 1400.0)), (None, (None, 3000.0))):
        (domain,) = NvmlSource(load=partial(FakeNvml, [1], limit_mw=limit_mw)).domains()
        assert (domain.limit_watts, domain.max_watts) == limits


def test_nvml_counts_microjoules_per_gpu_and_names_the_gpu_without_a_counter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nvml = FakeNvml([1500, None, 42])
    with caplog.at_level(logging.WARNING, logger="energy"):
        source = NvmlSource(load=lambda: nvml, clock_ns=Clock())
    assert {r.domain.device: r.energy_uj for r in source.read()} == {"gpu-0": 1_500_000, "gpu-2": 42_000}
    assert "gpu-1" in caplog.text
    assert not source.domains()[0].on_cpu
    nvml.energies_mj[0] = None
    assert [r.domain.device for r in source.read()] == ["gpu-2"]


def test_nvml_says_which_processes_kept_a_gpu_busy_and_counts_no_sample_twice() -> None:
    nvml = FakeNvml([1, 1])
    source = NvmlSource(load=lambda: nvml)
    nvml.samples[0] = [SimpleNamespace(pid=7, timeStamp=time, smUtil=40) for time in (10, 20)]
    nvml.samples[0].append(SimpleNamespace(pid=9, timeStamp=20, smUtil=15))
    assert source.busy() == {"gpu-0": {7: 80, 9: 15}}
    assert source.busy() == {}
    nvml.samples[0].append(SimpleNamespace(pid=9, timeStamp=30, smUtil=5))
    assert source.busy() == {"gpu-0": {9: 5}}


def test_nvml_says_that_a_partitioned_gpu_is_counted_as_a_whole(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="energy"):
        NvmlSource(load=lambda: FakeNvml([1], mig=True), clock_ns=Clock())
    assert "MIG" in caplog.text


@pytest.mark.parametrize("load", [no_nvml, lambda: FakeNvml([]), lambda: FakeNvml([None, None])])
def test_nvml_is_not_there_without_library_driver_or_counter(load: Any) -> None:
    with pytest.raises(SourceUnavailable):
        NvmlSource(load=load)


def test_the_estimate_follows_its_formula_and_leaves_steal_out(tmp_path: Path) -> None:
    proc, clock = FakeProc(tmp_path, cpus=2, memory_kib=2 * 2**20), Clock()
    source = EstimatedSource(CpuClock(tmp_path, clock), proc_root=tmp_path)
    assert source.cpu.family == "epyc-4th-gen"
    clock.pass_seconds(10)
    proc.spend(user=500, system=100, idle=1200, steal=200)
    cpu, memory = source.read()
    low, high = 0.739, 2.282
    assert cpu.energy_uj == pytest.approx((2 * 10 * low + 6 * (high - low)) * 1e6, abs=2)
    assert cpu.idle_uj == pytest.approx(2 * 10 * low * 1e6, abs=2)
    assert memory.energy_uj == memory.idle_uj == pytest.approx(0.392 * 2 * 10 * 1e6, abs=2)
    assert source.dynamic_joules_per_cpu_second() == pytest.approx(high - low)
    assert (source.relative_uncertainty, source.dynamic_uncertainty) == (0.8, 0.5)
    assert source.idle_watts == pytest.approx(2 * low + 0.784)


def test_the_estimate_is_missing_not_zero_while_proc_cannot_be_read(tmp_path: Path) -> None:
    proc, clock = FakeProc(tmp_path), Clock()
    source = EstimatedSource(CpuClock(tmp_path, clock), proc_root=tmp_path)
    meter = Meter([source])
    meter.tick()
    clock.pass_seconds(1)
    (tmp_path / "stat").write_text("")
    assert {m.reason for m in meter.tick().missing} == {"unreadable"}
    clock.pass_seconds(1)
    proc.spend(idle=400)
    memory = next(d for d in meter.tick().deltas if d.domain.name == "memory")
    assert memory.energy_uj == pytest.approx(2 * 0.784e6, abs=2)


def test_measured_comes_before_estimated(tmp_path: Path, two_sockets: Path) -> None:
    FakeProc(tmp_path / "proc")
    chosen = select_sources(proc_root=tmp_path / "proc", powercap_root=two_sockets, load_nvml=no_nvml)
    assert [source.name for source in chosen.sources] == ["rapl"]
    assert chosen.warnings == ()
    assert chosen.estimated is None


def test_without_counters_the_estimate_is_taken_with_a_warning(tmp_path: Path) -> None:
    FakeProc(tmp_path / "proc")
    chosen = select_sources(
        proc_root=tmp_path / "proc", powercap_root=tmp_path / "none", load_nvml=lambda: FakeNvml([7])
    )
    assert [source.name for source in chosen.sources] == ["estimated", "nvml"]
    assert "estimated" in chosen.warnings[0]
    assert chosen.estimated is chosen.cpu_source


def test_the_estimate_that_is_asked_for_is_the_same_with_and_without_a_gpu(tmp_path: Path, two_sockets: Path) -> None:
    FakeProc(tmp_path / "proc")
    chosen = select_sources(
        "estimated", proc_root=tmp_path / "proc", powercap_root=two_sockets, load_nvml=lambda: FakeNvml([7])
    )
    assert [source.name for source in chosen.sources] == ["estimated"]


@pytest.mark.parametrize("name", ["rapl", "nvml"])
def test_a_source_that_is_insisted_on_and_missing_is_an_error(tmp_path: Path, name: str) -> None:
    FakeProc(tmp_path / "proc")
    with pytest.raises(SourceUnavailable):
        select_sources(name, proc_root=tmp_path / "proc", powercap_root=tmp_path / "none", load_nvml=no_nvml)


def test_an_unknown_source_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="auto, rapl, nvml, estimated"):
        select_sources("solar")


def test_the_fake_source_is_a_source() -> None:
    assert isinstance(FakeSource(), EnergySource)
