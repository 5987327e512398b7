from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from energy.calibration import Calibration, CalibrationError
from server import calibrate
from server.cli import app


def test_known_watts_become_a_curve_and_the_command_says_how_to_use_it(tmp_path: Path) -> None:
    out = tmp_path / "var" / "curve.json"
    words = [word for pair in ("0=38", "0.1=45", "0.5=61", "1=90") for word in ("--watts", pair)]
    found = CliRunner().invoke(
        app, ["calibrate", *words, "--out", str(out), "--reference", "BMC"], env={"COLUMNS": "200"}
    )
    assert found.exit_code == 0, found.output
    assert "energy.calibration" in found.output
    curve = Calibration.read(out)
    assert ([(p.load, p.watts) for p in curve.points], curve.reference) == (
        [(0, 38), (0.1, 45), (0.5, 61), (1, 90)],
        "BMC",
    )
    assert json.loads(out.read_text())["version"] == 1


def test_a_word_that_is_no_pair_is_named() -> None:
    with pytest.raises(CalibrationError, match=r"'half'.*LOAD=WATTS"):
        calibrate.pairs_of(["0=38", "half"])


def test_the_users_command_is_asked_for_watts_and_nothing_else_is_believed() -> None:
    assert calibrate.watts_by_command("echo 41.5")(0.0, 0.1) == 41.5
    with pytest.raises(CalibrationError, match=r"41\.5 W"):
        calibrate.watts_by_command("echo 41.5 W")(0.0, 0.1)


def test_a_machine_that_is_busy_otherwise_is_not_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SETTLE_SECONDS", 0.0)
    with (
        calibrate.burning(1.0, os.cpu_count() or 1),
        pytest.raises(CalibrationError, match="stop what else runs"),
    ):
        calibrate.measure([0.0], 1.0, lambda load, seconds: wait(seconds), print, cpus=1)


def wait(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return 40.0
