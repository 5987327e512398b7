from __future__ import annotations

from pathlib import Path

import pytest

from energy.domains import Domain, EnergySource
from energy.meter import Meter
from energy.sources.nvml import NvmlSource
from energy.sources.rapl import RaplSource
from energy.sources.replay import FIELDS, RecordingError, ReplaySource, read_recording, record
from tests.energy.test_sources import FakeNvml
from tests.energy.trees import Clock, write_zone

SERIES = Path(__file__).with_name("recordings") / "two_gpus_and_two_sockets.csv"


def test_what_was_recorded_meters_the_same_when_it_is_played_back(tmp_path: Path) -> None:
    clock = Clock()
    counter = write_zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 9_900_000_000, range_uj=10_000_000_000)
    nvml = FakeNvml([1000, 5000])
    watts = iter([25, 325, 25, 25, 25])  # a burst within the board's limit
    rapl = RaplSource(tmp_path / "powercap", clock_ns=clock)
    gpus = NvmlSource(load=lambda: nvml, clock_ns=clock)
    live = Meter([rapl, gpus])
    live.tick()
    energy_uj = [9_900_000_000]

    def second(_: float) -> None:
        clock.pass_seconds(1)
        energy_uj[0] = (energy_uj[0] + 300_000_000) % 10_000_000_000
        counter.write_text(f"{energy_uj[0]}\n")
        drawn_mj = next(watts) * 1000
        nvml.energies_mj = [1000 if value is None else value + drawn_mj for value in nvml.energies_mj]
        live.tick()

    rows = record([rapl, gpus], tmp_path / "series.csv", 6, 1.0, second, clock)
    assert rows == 6 * 3
    again = Meter([ReplaySource(read_recording(tmp_path / "series.csv"))])
    for _ in range(6):
        again.tick()
    assert {d.device: uj for d, uj in again.total_uj.items()} == {d.device: uj for d, uj in live.total_uj.items()}
    assert again.total_uj[Domain("gpu", "gpu-0", "fake")] == 425_000_000
    assert sum(again.missing_ticks.values()) == 0


def test_a_recorded_wrap_a_reset_driver_and_a_lost_gpu_are_metered_as_they_were() -> None:
    source = ReplaySource(read_recording(SERIES))
    assert isinstance(source, EnergySource)
    meter = Meter([source])
    for _ in read_recording(SERIES):
        meter.tick()
    joules = {(d.device, d.name): uj / 1e6 for d, uj in meter.total_uj.items()}
    assert joules == {
        ("package-0", "package"): pytest.approx(600.0),
        ("package-1", "package"): pytest.approx(500.0),
        ("gpu-0", "gpu"): pytest.approx(900.0),
        ("gpu-1", "gpu"): pytest.approx(750.0),
    }
    assert {(d.device, reason): ticks for (d, reason), ticks in meter.missing_ticks.items()} == {
        ("gpu-0", "reset"): 1,
        ("gpu-1", "unreadable"): 2,
    }


def test_after_the_last_read_its_counters_are_unreadable_and_not_zero() -> None:
    reads = read_recording(SERIES)
    source = ReplaySource(reads)
    for _ in reads:
        assert source.read()
    assert source.read() == []


def test_a_file_that_is_no_recording_is_refused_with_the_fields_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("time_ns,source\n1,x\n")
    with pytest.raises(RecordingError, match="wraps_at_uj"):
        read_recording(path)
    path.write_text(",".join(FIELDS) + "\n1,rapl,a,b,many,,,0,0,1\n")
    with pytest.raises(RecordingError):
        read_recording(path)
