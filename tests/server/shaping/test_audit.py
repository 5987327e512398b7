"""Every change of the settings is on record, and can be gone back to."""

from __future__ import annotations

import json
import os
import pwd
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.config import Settings, SettingsError
from server.shaping import audit
from server.shaping.tunables import Tunables, check_points
from server.shaping.tuning import Author, VersionConflict, audit_path, begin, load, save, tune, undo
from server.shaping.watching import TuningWatcher

ANN = Author("ann", "http")
USER = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tuning.json"
    begin(path, Tunables.of(Settings()))
    return path


def entries(file: Path) -> list[audit.Entry]:
    return audit.read(audit_path(file))


def test_a_change_is_on_record_with_who_when_and_what(file: Path) -> None:
    tune(file, {"shaping.policy": "off", "batching.max_rows": "8"}, author=ANN)
    start, change = entries(file)
    assert (start.version, start.via, start.who, start.changes) == (0, "start", USER, {})
    assert (change.version, change.via, change.who, change.restored) == (1, "http", "ann", None)
    assert change.changes == {"shaping.policy": ("percentile", "off"), "batching.max_rows": (16, 8)}
    assert change.settings == load(file).to_user_config()
    assert change.time.endswith("Z")
    assert audit_path(file).stat().st_mode & 0o077 == 0


def test_the_command_line_signs_with_the_user_s_name(file: Path) -> None:
    tune(file, {"cache.ttl_s": 9})
    assert (entries(file)[-1].who, entries(file)[-1].via) == (USER, "cli")


def test_what_is_refused_leaves_no_trace(file: Path) -> None:
    for changes in ({"cache.ttl_s": -1}, {"shaping.pin_point": "nowhere", "shaping.policy": "pin"}):
        with pytest.raises(SettingsError):
            tune(file, changes, check_points(["full"]))
    with pytest.raises(VersionConflict, match="look again"):
        tune(file, {"cache.ttl_s": 9}, expected_version=7)
    assert (len(entries(file)), load(file).version) == (1, 0)


def test_going_back_again_goes_further_back_and_each_is_a_version(file: Path) -> None:
    for ttl_s in (10, 20, 30):
        tune(file, {"cache.ttl_s": ttl_s})
    seen = [(tuned.version, tuned.cache.ttl_s) for tuned in (undo(file), undo(file), undo(file))]
    assert seen == [(4, 20), (5, 10), (6, 300)]
    assert [entry.restored for entry in entries(file)[-3:]] == [2, 1, 0]
    with pytest.raises(SettingsError, match="nothing to go back to"):
        undo(file)


def test_a_change_after_going_back_can_be_undone_alone(file: Path) -> None:
    for ttl_s in (10, 20):
        tune(file, {"cache.ttl_s": ttl_s})
    undo(file)
    tune(file, {"cache.ttl_s": 99})
    assert undo(file).cache.ttl_s == 10


def test_any_version_since_the_start_can_be_gone_back_to(file: Path) -> None:
    for ttl_s in (10, 20, 30):
        tune(file, {"cache.ttl_s": ttl_s})
    assert undo(file, to=1).cache.ttl_s == 10
    with pytest.raises(SettingsError, match="versions since the start: 0, 1, 2, 3, 4"):
        undo(file, to=9)


def test_a_version_that_does_not_fit_any_more_is_refused(file: Path) -> None:
    tune(file, {"shaping.pin_point": "lite", "shaping.policy": "pin"})
    tune(file, {"shaping.policy": "off", "shaping.pin_point": "null"})
    with pytest.raises(SettingsError, match="no operating point 'lite'"):
        undo(file, check_points(["full", "nano"]))
    assert load(file).version == 2


def test_another_start_begins_with_its_settings_and_keeps_the_record(file: Path) -> None:
    tune(file, {"cache.ttl_s": 10})
    begin(file, Tunables.of(Settings()))
    assert (load(file).version, load(file).cache.ttl_s) == (0, 300)
    assert entries(file)[-1].changes == {"cache.ttl_s": (10, 300)}
    with pytest.raises(SettingsError, match="nothing to go back to"):
        undo(file)


def test_an_edit_by_hand_becomes_a_version_and_goes_on_record(file: Path) -> None:
    watcher = TuningWatcher(file, load(file))
    watcher.poll()
    content: dict[str, Any] = json.loads(file.read_bytes())
    content["cache"]["ttl_s"] = 77
    file.write_text(json.dumps(content))
    taken = watcher.poll()
    assert taken is not None
    assert (taken.version, load(file).version) == (1, 1)
    assert (entries(file)[-1].via, entries(file)[-1].changes) == ("file", {"cache.ttl_s": (300.0, 77.0)})
    assert watcher.poll() is None
    assert undo(file).cache.ttl_s == 300


def test_what_tune_wrote_is_not_recorded_twice_by_the_watcher(file: Path) -> None:
    watcher = TuningWatcher(file, load(file))
    tune(file, {"cache.ttl_s": 10})
    taken = watcher.poll()
    assert taken is not None
    assert taken.version == 1
    assert [entry.via for entry in entries(file)] == ["start", "cli"]


def test_a_line_that_a_crash_cut_off_costs_that_line_alone(file: Path) -> None:
    tune(file, {"cache.ttl_s": 10})
    with audit_path(file).open("a") as log:
        log.write('{"version": 2, "time"')
    tune(file, {"cache.ttl_s": 20})
    assert [entry.version for entry in entries(file)] == [0, 1, 2]
    assert undo(file).cache.ttl_s == 10


@contextmanager
def full_disk(log: Path, room: int) -> Iterator[None]:
    """As if `room` bytes were left for the log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_nothing_is_changed_and_the_log_stays_whole(file: Path) -> None:
    tune(file, {"cache.ttl_s": 10})
    before = audit_path(file).read_bytes()
    with full_disk(audit_path(file), room=100), pytest.raises(OSError, match="too large"):
        tune(file, {"cache.ttl_s": 20})
    assert (load(file).cache.ttl_s, audit_path(file).read_bytes()) == (10, before)
    assert tune(file, {"cache.ttl_s": 30}).version == 2
    assert [entry.version for entry in entries(file)] == [0, 1, 2]


def test_an_entry_whose_change_never_took_effect_is_not_gone_back_to(file: Path) -> None:
    tune(file, {"cache.ttl_s": 10})
    before = load(file)
    tune(file, {"cache.ttl_s": 20})
    save(file, before)  # as if the process had died between the log and the file
    assert undo(file).cache.ttl_s == 300


def test_a_log_that_has_grown_long_is_kept_aside_at_the_next_start(file: Path) -> None:
    log = audit_path(file)
    log.write_bytes(log.read_bytes() * (audit.MAX_BYTES // log.stat().st_size + 2))
    begin(file, Tunables.of(Settings()))
    assert len(entries(file)) == 1
    assert log.with_name(f"{log.name}.1").stat().st_size > audit.MAX_BYTES


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(1, 9)), max_size=12))
def test_going_back_is_a_walk_along_the_changes_that_still_count(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int | None]
) -> None:
    file = tmp_path_factory.mktemp("audit") / "tuning.json"
    begin(file, Tunables.of(Settings()))
    held = [300.0]
    for step in steps:
        if step is not None:
            tune(file, {"cache.ttl_s": step})
            held.append(step)
        elif len(held) > 1:
            undo(file)
            held.pop()
        assert load(file).cache.ttl_s == held[-1]
