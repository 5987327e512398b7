"""A compile with a deadline pauses between passes for clean hours, keeps its deadline, and says what it saved."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from compile.errors import InputError
from compile.runner import Silent
from compile.shifting import Clock, Shift, open_grid, parse_by
from energy.grid.ladder import Ladder
from energy.grid.replay import Recording, ReplayProvider

START = datetime(2025, 1, 6, tzinfo=UTC)
HOUR_S = 3600.0
WORKS = [("full", "finetune"), ("full", "export"), ("full", "measure")]
DAY = [500.0] * 6 + [125.0] * 2 + [400.0] * 16


class Turned:
    """A clock that only sleeping and working turn."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Turned:
    return Turned()


def shift_of(clock: Turned, folder: Path, hours: float, told: list[str]) -> Shift:
    """The same day for five weeks, four of them in the past."""
    times = tuple(START + timedelta(hours=hour) for hour in range(-28 * 24, 7 * 24))
    recording = Recording(times, tuple(DAY[time.hour] for time in times), timedelta(hours=1))
    provider = ReplayProvider(recording, "X", 1.0, START, clock.monotonic)
    ladder = Ladder(provider)
    ladder.learn(provider.past(28))
    by = START + timedelta(hours=hours)
    return Shift(ladder, by, Silent(), told.append, folder / "shift.json", clock=Clock(clock.monotonic, clock.sleep))


def run(shift: Shift, clock: Turned, takes_s: float) -> list[float]:
    """The passes, each `takes_s` long; returns the hours in which they began."""
    shift.planned(WORKS, dict.fromkeys(WORKS, takes_s))
    began = []
    for label, name in WORKS:
        shift.started(label, name)
        shift.pause()
        began.append(clock.now_s / HOUR_S)
        clock.now_s += takes_s
        sum(n * n for n in range(200_000))  # something to meter
        shift.finished(label, name, takes_s, False)
    shift.close()
    return began


def test_the_passes_wait_for_the_clean_hours(clock: Turned, tmp_path: Path) -> None:
    told: list[str] = []
    shift = shift_of(clock, tmp_path, 20, told)
    assert [int(hour) for hour in run(shift, clock, 1200.0)] == [6, 6, 6]
    assert "waiting for a cleaner hour before full: finetune" in told[0]
    sums = shift.sums()
    assert sums["grams_at_once"] == pytest.approx(4 * sums["grams"])
    assert "less" in shift.conclude()
    kept = json.loads((tmp_path / "shift.json").read_text())
    assert [one["name"] for one in kept["passes"]] == [name for _, name in WORKS]
    assert kept["grams"] == pytest.approx(sums["grams"])


def test_a_run_pauses_between_passes_when_the_clean_hours_are_over_and_goes_on_in_the_next(
    clock: Turned, tmp_path: Path
) -> None:
    shift = shift_of(clock, tmp_path, 40, [])
    began = run(shift, clock, 1.3 * HOUR_S)
    assert int(began[0]) == 6
    assert 24 + 6 <= began[-1] < 24 + 8


def test_the_deadline_is_kept_however_dirty_the_hours(clock: Turned, tmp_path: Path) -> None:
    shift = shift_of(clock, tmp_path, 4, [])
    began = run(shift, clock, 0.8 * HOUR_S)
    assert began[-1] + 0.8 <= 4


def test_passes_from_the_cache_are_neither_waited_for_nor_metered(clock: Turned, tmp_path: Path) -> None:
    shift = shift_of(clock, tmp_path, 20, [])
    shift.planned(WORKS, {})
    for label, name in WORKS:
        shift.started(label, name)
        shift.finished(label, name, 0.0, True)
    shift.close()
    assert clock.now_s == 0
    assert shift.ran == []
    assert "nothing was left to do" in shift.conclude()


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    for text in ("tomorrow", "+12", "+xh", "2024-01-01"):
        with pytest.raises(InputError, match="--by"):
            parse_by(text, START)
    assert parse_by("+90m", START) == START + timedelta(minutes=90)
    with pytest.raises(InputError, match="--grid"):
        open_grid(str(tmp_path / "none.csv"), None, 1.0, None, tmp_path / "cache")
    with pytest.raises(InputError, match="--grid"):
        open_grid("electricity_maps:DE", None, 1.0, None, tmp_path / "cache")
    with pytest.raises(InputError, match="uk serves GB, not 'FR'"):
        open_grid("uk:FR", None, 1.0, None, tmp_path / "cache")
