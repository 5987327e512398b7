from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.node import hours
from server.node.hour_keeper import HourKeeper
from server.node.hours import OPEN_FILE, HourBook, HourFiles, hour_of, read_lines, series

NOON_S = 1_795_780_800.0
JOULES = series("jouleserve_energy_joules_total", {"domain": "cpu"})


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [line for path in sorted(folder.glob("????-??.jsonl")) for line in read_lines(path)]


def joules(found: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [(line["hour"][11:13], sum(value for _, _, value in line["counters"])) for line in found]


class Kept:
    """A keeper whose one counter a test moves."""

    def __init__(self, folder: Path, book: HourBook | None = None, joules: float = 0.0) -> None:
        self.joules = joules
        self.keeper = HourKeeper(
            book or HourBook(), HourFiles(folder), lambda: {JOULES: self.joules}, lambda: {"pue": 1.2}, write
        )
        self.keeper.resume()

    def second(self, now_s: float, drawn: float, grams: float | None = None) -> None:
        self.joules += drawn
        if self.keeper.pass_time(now_s, 1.0, grams, "live"):
            self.keeper.flush()


def test_every_hour_gets_what_its_counters_grew_by(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    for second in range(0, 3 * 3600, 600):
        kept.second(NOON_S + second, 10.0, 200.0 if second < 3600 else None)
    kept.keeper.show()
    # What is drawn in an hour's first second was counted before the hour was seen to begin.
    assert joules(lines(tmp_path)) == [("12", 60.0), ("13", 60.0)]
    (first, second) = lines(tmp_path)
    assert first["grid"] == {"seconds": 6.0, "gram_seconds": 1200.0, "kinds": {"live": 6.0}}
    assert (second["grid"]["seconds"], second["pue"], second["seconds"]) == (0, 1.2, 6.0)
    assert joules(read_lines(tmp_path / OPEN_FILE)) == [("14", 50.0)]


def test_a_crash_between_state_and_file_neither_loses_nor_doubles_an_hour(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.second(NOON_S, 10.0)
    kept.second(NOON_S + 1, 10.0)
    kept.joules += 5
    assert kept.keeper.pass_time(NOON_S + 3600, 1.0, None, "")
    state = json.dumps(kept.keeper.book.to_json())
    for _ in range(2):  # killed before the file was written, then after it was and before the state was
        Kept(tmp_path, HourBook.from_json(json.loads(state)), kept.joules)
        assert joules(lines(tmp_path)) == [("12", 15.0)]


def test_hours_after_the_state_was_lost_or_restored_from_a_backup_are_kept_beside_those_before(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    for second in (0, 1, 3600):
        kept.second(NOON_S + second, 10.0)
    backup = json.dumps(kept.keeper.book.to_json())
    kept.second(NOON_S + 7200, 10.0)
    kept.second(NOON_S + 7201, 5.0)
    kept.keeper.show()
    lost = Kept(
        tmp_path
    )  # its counters begin at 0; what the hour of 14 had so far is in the file of the open hour only
    for second in (7210, 7211, 10_800, 14_400):
        lost.second(NOON_S + second, 1.0)
    assert joules(lines(tmp_path)) == [("12", 20.0), ("13", 10.0), ("14", 5.0), ("14", 2.0), ("15", 1.0)]
    restored = Kept(tmp_path, HourBook.from_json(json.loads(backup)), 100.0)
    restored.second(NOON_S + 18_000, 1.0)
    restored.keeper.show()
    found = [*lines(tmp_path), *read_lines(tmp_path / OPEN_FILE)]
    assert len(found) == 7
    assert len({line["number"] for line in found}) == 7


def test_the_last_number_is_found_without_reading_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours, "TAIL_BYTES", 7)
    files = HourFiles(tmp_path)
    assert files.last_number() == -1
    path = tmp_path / "2026-11.jsonl"
    path.write_bytes(b'{"version":1,"num\n')
    assert files.last_number() == -1
    path.write_bytes(b'{"version":1,"number":7}\n{"version":1,"number":8}\n{"version":1,"num')
    assert files.last_number() == 8
    (tmp_path / "2026-10.jsonl").write_bytes(b'{"version":1,"number":9}\n')
    assert files.last_number() == 9


def test_a_line_that_a_power_cut_left_in_the_middle_spoils_no_other(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    for second in (0, 1, 3600):
        kept.second(NOON_S + second, 10.0)
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("ab") as stream:
        stream.write(b'{"version":1,"num')
    kept.second(NOON_S + 7200, 10.0)
    assert [hour for hour, _ in joules(lines(tmp_path))] == ["12", "13"]


def test_a_disk_that_takes_half_a_line_keeps_the_hour_for_later(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    for second in (0, 1, 3600):
        kept.second(NOON_S + second, 10.0)
    (path,) = tmp_path.glob("*.jsonl")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        kept.second(NOON_S + 7200, 10.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    kept.second(NOON_S + 10_800, 10.0)
    assert joules(lines(tmp_path)) == [("12", 20.0), ("13", 10.0), ("14", 10.0)]


def test_a_clock_that_goes_back_gives_an_hour_two_lines_that_add_up(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    for second in (0, 3600, 10, 7200):
        kept.second(NOON_S + second, 10.0)
    found = joules(lines(tmp_path))
    assert [hour for hour, _ in found] == ["12", "13", "12"]
    assert sum(value for _, value in found) == 30.0


def test_only_so_many_months_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours, "KEPT_MONTHS", 2)
    kept = Kept(tmp_path)
    for month in range(5):
        kept.second(NOON_S + month * 31 * 86_400, 10.0)
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_a_folder_that_cannot_be_written_keeps_the_hours_for_later(tmp_path: Path) -> None:
    blocked = tmp_path / "hours"
    blocked.write_text("a file where the folder should be")
    kept = Kept(blocked)
    for second in (0, 3600):
        kept.second(NOON_S + second, 10.0)
    assert len(kept.keeper.book.unwritten) == 1
    blocked.unlink()
    kept.second(NOON_S + 7200, 10.0)
    assert [hour for hour, _ in joules(lines(blocked))] == ["12", "13"]


@given(st.lists(st.tuples(st.integers(-4000, 9000), st.floats(0, 100)), min_size=1, max_size=30), st.integers(0, 29))
def test_whatever_the_clock_does_the_hours_add_up_to_the_counter(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, float]], restart_at: int
) -> None:
    folder = tmp_path_factory.mktemp("hours")
    kept, now_s = Kept(folder), NOON_S
    kept.keeper.pass_time(now_s, 1.0, None, "")
    for number, (step_s, drawn) in enumerate(steps):
        now_s += step_s
        kept.second(now_s, drawn)
        if number == restart_at:
            kept = Kept(folder, HourBook.from_json(json.loads(json.dumps(kept.keeper.book.to_json()))), kept.joules)
    kept.keeper.show()
    found = [*lines(folder), *read_lines(folder / OPEN_FILE)]
    assert sum(value for _, value in joules(found)) == pytest.approx(sum(drawn for _, drawn in steps), abs=1e-6)
    assert len({line["number"] for line in found}) == len(found)


def test_hours_are_named_by_their_beginning_in_utc() -> None:
    assert hour_of(NOON_S + 1800) == "2026-11-27T12:00:00Z"
