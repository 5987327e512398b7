from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from energy.domains import Domain
from server.node import state as node_state
from server.node.grid_state import STALE_AFTER_SECONDS, GridFile, parse_grid_state
from server.node.state import NodeState
from server.node.totals import ServingTotals, TotalsError, increase
from server.node.wire import decode_snapshot
from server.usage import Usage

CPU = Domain("cpu", "node", "estimated")


def kept() -> NodeState:
    usage = Usage("intents")
    usage.request("full", "full", "eco", "ok", 5_000_000, total_ns=3)
    usage.batch("full", 3, 4, 5, infer_ns=6, cpu_ns=7)
    snapshot = decode_snapshot(usage.snapshot())
    state = NodeState(settled={usage.instance: snapshot}, idle_watts={"a/b/c": 1.5}, meter_cpu_seconds=2.5)
    state.ledger.meter({CPU: 12345})
    state.totals.add(increase(snapshot, None))
    state.totals.late_records = 3
    state.missing_ticks, state.unmetered_uj = {(CPU, "gap"): 2}, {(CPU, "gap"): 40}
    return state


def test_everything_comes_back_from_disk(tmp_path: Path) -> None:
    state = kept()
    node_state.write_atomic(tmp_path / "node.json", state.encode(), durable=True)
    loaded = node_state.load(tmp_path / "node.json")
    assert loaded == state
    assert loaded.name == state.name != NodeState().name
    assert os.listdir(tmp_path) == ["node.json"]


def test_totals_beyond_64_bits_are_kept_too(tmp_path: Path) -> None:
    state = kept()
    state.totals.dropped_cpu_ns = 2**64 + 1
    node_state.write_atomic(tmp_path / "node.json", state.encode(), durable=True)
    assert node_state.load(tmp_path / "node.json") == state


def test_texts_of_the_class_standard_are_those_that_came_to_the_engine_without_jobs() -> None:
    usage, totals = Usage("intents"), ServingTotals()
    for quality, outcome in (("standard", "ok"), ("standard", "cached"), ("strict", "ok"), ("eco", "ok")):
        usage.request("full", "full", quality, outcome, 1)
    usage.request("", "", "standard", "refused", 0)
    totals.add(increase(decode_snapshot(usage.snapshot()), None))
    assert sum(totals.requests.values()) == 5
    assert totals.standard_texts == 2


def test_joules_of_a_window_that_was_open_when_the_node_was_killed_are_nobodys_and_not_gone(tmp_path: Path) -> None:
    path, state = tmp_path / "node.json", kept()
    state.pending_uj = {CPU.label: 12345}
    assert state.ledger.conservation(pending_uj=12345).error_ratio == 0
    node_state.write_atomic(path, state.encode(), durable=False)
    loaded = node_state.load(path)
    assert loaded.ledger.other_uj == {"lost_at_restart": 12345}
    assert loaded.ledger.conservation().error_ratio == 0
    node_state.write_atomic(path, loaded.encode(), durable=False)
    assert node_state.load(path).ledger.other_uj == {"lost_at_restart": 12345}


def test_without_a_file_the_books_begin_empty(tmp_path: Path) -> None:
    assert node_state.load(tmp_path / "none.json") == NodeState()


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"version": 7}', b'{"version": 1, "ledger": {}}'])
def test_a_file_that_is_not_ours_is_kept_aside_and_said_aloud(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "node.json"
    path.write_bytes(data)
    with caplog.at_level(logging.ERROR):
        assert node_state.load(path) == NodeState()
    assert "begin anew" in caplog.text
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith("node.json.unreadable-")
    assert aside.read_bytes() == data


def test_a_write_that_fails_leaves_the_old_content_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.json"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="space"):
        node_state.write_atomic(path, b"new", durable=False)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["node.json"]


@pytest.mark.parametrize("damage", [{"version": 2}, {"requests": [[1]]}, {"histograms": {"total": [1]}}])
def test_damaged_totals_are_refused(damage: dict[str, object]) -> None:
    with pytest.raises(TotalsError):
        ServingTotals.from_json({**kept().totals.to_json(), **damage})


GRID = {
    "grams_per_kwh": 250.5,
    "zone": "GB",
    "provider": "replay",
    "kind": "live",
    "time": "2026-01-01T00:00:00Z",
    "age_s": 60,
    "dial_point": "lite",
    "policy": "threshold",
    "reason": "dirty",
    "switches_total": 3,
}


class WallClock:
    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def written(folder: Path, **changes: object) -> float:
    path = folder / "grid.json.new"
    path.write_text(json.dumps({**GRID, **changes}))
    path.replace(folder / "grid.json")
    return (folder / "grid.json").stat().st_mtime


def test_the_grid_file_is_followed_as_it_is_replaced(tmp_path: Path) -> None:
    clock = WallClock(written(tmp_path) + 5)
    grid = GridFile(tmp_path, clock)
    state = grid.state()
    assert state is not None
    assert (state.grams_per_kwh, state.dial_point, state.switches_total) == (250.5, "lite", 3)
    assert grid.grams_per_kwh() == 250.5
    assert grid.age_s() == pytest.approx(65)
    written(tmp_path, grams_per_kwh=None, age_s=None)
    assert grid.grams_per_kwh() is None
    assert grid.age_s() is None


def test_without_a_file_or_with_an_old_one_the_intensity_is_unknown(tmp_path: Path) -> None:
    clock = WallClock(0)
    grid = GridFile(tmp_path, clock)
    assert grid.state() is None
    assert grid.grams_per_kwh() is None
    clock.now_s = written(tmp_path) + STALE_AFTER_SECONDS + 1
    assert grid.grams_per_kwh() is None
    assert grid.state() is not None


def test_a_copy_of_the_grid_file_is_as_old_as_its_reading_however_often_it_is_written(tmp_path: Path) -> None:
    first_s = written(tmp_path)
    clock = WallClock(first_s)
    grid = GridFile(tmp_path, clock)
    for passed_s, known in ((0, True), (STALE_AFTER_SECONDS - 1, True), (STALE_AFTER_SECONDS + 1, False)):
        clock.now_s = first_s + passed_s
        written(tmp_path, written_s=first_s)
        os.utime(tmp_path / "grid.json", (clock.now_s, clock.now_s))
        assert (grid.grams_per_kwh() is not None) is known
        assert grid.age_s() == pytest.approx(60 + passed_s)


def test_a_grid_file_of_a_clock_that_is_ahead_is_no_younger_than_the_file() -> None:
    assert parse_grid_state(json.dumps({**GRID, "written_s": 5000.0}).encode(), 4000.0).written_s == 4000.0


def test_a_grid_file_that_cannot_be_understood_leaves_the_state_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = WallClock(written(tmp_path))
    grid = GridFile(tmp_path, clock)
    assert grid.grams_per_kwh() == 250.5
    written(tmp_path, grams_per_kwh=-5)
    assert grid.grams_per_kwh() == 250.5
    assert "grams_per_kwh" in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [("grams_per_kwh", "much"), ("grams_per_kwh", 1e9), ("age_s", -1), ("switches_total", -1)],
)
def test_a_wrong_field_of_the_grid_file_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        parse_grid_state(json.dumps({**GRID, field: value}).encode(), 0.0)
