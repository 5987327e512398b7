from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.accuracy import study
from energy.calibration import Calibration, CalibrationError
from energy.coefficients import load_coefficients
from energy.meter import Meter
from energy.procfs import CpuClock
from energy.sources.estimated import EstimatedSource
from tests.energy.trees import Clock, FakeProc

KNOWN = {"reference": "plug meter", "date": "2026-11-28"}
CURVE = Calibration.of({0.0: 50.0, 0.5: 80.0, 1.0: 100.0}, **KNOWN)


def test_between_the_points_the_curve_is_straight() -> None:
    assert [CURVE.watts(load) for load in (0, 0.25, 0.5, 0.75, 1, 2)] == [50, 65, 80, 90, 100, 100]


def test_a_machine_that_was_never_quite_idle_is_carried_on_to_no_load() -> None:
    assert Calibration.of({0.1: 56.0, 0.5: 80.0, 0.95: 98.0}, **KNOWN).idle_watts == pytest.approx(50)


@pytest.mark.parametrize(
    "points",
    [
        {0.0: 50.0},
        {0.3: 50.0, 1.0: 90.0},
        {0.0: 50.0, 0.5: 90.0},
        {0.0: 50.0, 0.5: 40.0, 1.0: 90.0},
        {0.0: 0.0, 1.0: 90.0},
        {0.0: 50.0, 1.0: 50.0},
        {0.0: 50.0, 1.0: float("nan")},
    ],
)
def test_points_that_are_no_power_curve_are_refused_with_a_remedy(points: dict[float, float]) -> None:
    with pytest.raises(CalibrationError, match=r"points: .*(give|measure|read)"):
        Calibration.of(points, **KNOWN)


def test_a_file_comes_back_as_it_was_written_and_anything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    path.write_text(json.dumps(CURVE.to_json()))
    assert Calibration.read(path) == CURVE
    for content in ("{", "[]", '{"version": 2}', json.dumps({**CURVE.to_json(), "points": [1]})):
        path.write_text(content)
        with pytest.raises(CalibrationError, match="calibrat"):
            Calibration.read(path)
    with pytest.raises(CalibrationError, match="jouleserve calibrate"):
        Calibration.read(tmp_path / "none.json")


@given(st.lists(st.integers(0, 200), min_size=1, max_size=30))
def test_a_calibrated_machine_draws_what_its_curve_says_of_each_seconds_load(
    tmp_path_factory: pytest.TempPathFactory, busy_ticks: list[int]
) -> None:
    root = tmp_path_factory.mktemp("proc")
    proc, clock = FakeProc(root, cpus=2), Clock()
    source = EstimatedSource(CpuClock(root, clock), proc_root=root, calibration=CURVE)
    meter = Meter([source])
    meter.tick()
    for ticks in busy_ticks:
        clock.pass_seconds(1)
        proc.spend(user=ticks, idle=200 - ticks)
        (delta,) = meter.tick().deltas
        assert delta.energy_uj == pytest.approx(CURVE.watts(ticks / 200) * 1e6, abs=2)
        assert delta.idle_uj == pytest.approx(50e6, abs=2)


def test_a_calibrated_machine_is_one_domain_with_the_calibrations_own_uncertainty(tmp_path: Path) -> None:
    FakeProc(tmp_path)
    source = EstimatedSource(CpuClock(tmp_path, Clock()), proc_root=tmp_path, calibration=CURVE)
    assert [domain.name for domain in source.domains()] == ["machine"]
    assert source.dynamic_joules_per_cpu_second() is None
    assert source.relative_uncertainty == source.dynamic_uncertainty == pytest.approx(0.5, abs=0.001)
    low = Calibration.of({0.0: 50.0, 0.1: 60.0, 1.0: 100.0}, reference_uncertainty=0.0, **KNOWN)
    assert low.relative_uncertainty(load_coefficients().uncertainty) == 0.1


def test_the_uncertainty_that_is_exported_covers_the_published_measurements() -> None:
    found = study()
    assert {name: one.covered for name, one in found.items()} == dict.fromkeys(found, 1.0)
    before, after = found["uncalibrated, idle"], found["calibrated at 0, 10, 50, 100 %"]
    assert after.largest < before.median
