"""Settings that change while the server runs: whole or not at all, through a watched file."""

from __future__ import annotations

import asyncio
import fcntl
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config import Settings, SettingsError, nested
from server.config import load as load_settings
from server.shaping import tuning
from server.shaping.tunables import Tunables, check_points
from server.shaping.tuning import begin, load, save, tune
from server.shaping.watching import TuningWatcher


def start() -> Tunables:
    return Tunables.of(Settings(**nested({"batching.workers": 2, "shaping.min_dwell_s": 60, "cache.ttl_s": 9})))


def test_the_tunables_take_what_the_settings_say() -> None:
    tunables = start()
    assert (tunables.version, tunables.shaping.min_dwell_s, tunables.cache.ttl_s) == (0, 60, 9)
    assert "workers" not in tunables.to_user_config()["batching"]


def test_changes_are_applied_together_as_the_next_version() -> None:
    changed = start().apply(
        {
            "shaping.dirty_above_grams_per_kwh": "250",
            "shaping.clean_below_grams_per_kwh": 200,
            "shaping.floors.eco": "0.5",
            "batching.max_rows": "8",
        }
    )
    assert changed.version == 1
    assert changed.shaping.dirty_above_grams_per_kwh == 250
    assert changed.shaping.floors.eco == 0.5
    assert changed.shaping.min_dwell_s == 60
    assert changed.batching.max_rows == 8


@pytest.mark.parametrize(
    ("settings", "policy"),
    [
        ({}, "percentile"),
        ({"shaping.min_dwell_s": 60}, "percentile"),
        ({"shaping.dirty_above_grams_per_kwh": "320"}, "threshold"),
        ({"shaping.clean_below_grams_per_kwh": 100}, "threshold"),
        ({"shaping.clean_below_grams_per_kwh": 100, "shaping.policy": "percentile"}, "percentile"),
        ({"shaping.clean_below_grams_per_kwh": 100, "shaping.policy": "off"}, "off"),
    ],
)
def test_a_threshold_without_a_policy_means_the_policy_of_thresholds(settings: dict[str, Any], policy: str) -> None:
    whole = Settings(**nested(settings))
    assert whole.shaping.policy == policy
    assert Tunables.of(whole).shaping.policy == policy
    assert Tunables.from_user_config(Tunables.of(whole).to_user_config()).shaping.policy == policy
    assert start().apply(settings).shaping.policy == policy


def test_a_threshold_tuned_under_another_policy_than_the_default_leaves_it() -> None:
    off = start().apply({"shaping.policy": "off"})
    assert off.apply({"shaping.dirty_above_grams_per_kwh": 500}).shaping.policy == "off"
    again = off.apply({"shaping.policy": "percentile", "shaping.dirty_above_grams_per_kwh": 500})
    assert again.shaping.policy == "percentile"


def test_layers_that_name_thresholds_and_a_policy_apart_are_taken_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "jouleserve.yaml"
    file.write_text("shaping: {clean_below_grams_per_kwh: 200}")
    loaded = load_settings(file)
    assert "policy: threshold  # implied by others" in loaded.explain()
    monkeypatch.setenv("JOULESERVE_SHAPING__POLICY", "percentile")
    assert load_settings(file).settings.shaping.policy == "percentile"
    assert load_settings(file, {"shaping.policy": "off"}).settings.shaping.policy == "off"
    monkeypatch.delenv("JOULESERVE_SHAPING__POLICY")
    file.write_text("shaping: {policy: percentile}")
    assert load_settings(file, {"shaping.dirty_above_grams_per_kwh": "400"}).settings.shaping.policy == "percentile"
    monkeypatch.setenv("JOULESERVE_SHAPING__DIRTY_ABOVE_GRAMS_PER_KWH", "500")
    file.write_text("{}")
    assert load_settings(file).settings.shaping.policy == "threshold"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shaping.clean_below_grams_per_kwh": "400"}, "shaping.clean_below_grams_per_kwh: 400 is not below"),
        ({"shaping.polcy": "off"}, "did you mean 'shaping.policy'"),
        ({"server.port": 1}, "server.port: cannot change while running; edit the settings file and restart"),
        ({"batching.workers": 1}, "batching.workers: cannot change while running"),
        ({"batching": "x"}, "batching: is a group of settings"),
        ({"version": 7}, "version: unknown key"),
        ({"shaping.policy": "pin"}, "shaping.pin_point: missing"),
        ({"batching.max_rows": "many"}, "batching.max_rows: 'many' is wrong"),
        ({"shaping.policy": "budget", "shaping.budget_amount": "inf"}, "shaping.budget_amount: 'inf' is wrong"),
    ],
)
def test_a_wrong_change_is_refused_with_its_remedy(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        start().apply(changes | {"batching.max_tokens": 512})
    assert any(said in line for line in caught.value.problems)


def test_a_point_that_the_family_lacks_is_refused() -> None:
    check = check_points(("full", "lite"))
    check(start().apply({"shaping.policy": "pin", "shaping.pin_point": "lite"}))
    with pytest.raises(SettingsError, match=r"shaping.fallback_point: .*'nano'; use one of full, lite"):
        check(start().apply({"shaping.fallback_point": "nano"}))


@given(rows=st.integers(-5, 2000), dwell=st.floats(-1, 1e6), policy=st.sampled_from(["off", "threshold", "x"]))
def test_an_applied_change_survives_the_way_to_the_replicas(rows: int, dwell: float, policy: str) -> None:
    changes = {"batching.max_rows": rows, "shaping.min_dwell_s": dwell, "shaping.policy": policy}
    before = start()
    try:
        after = before.apply(changes)
    except SettingsError:
        assert rows < 1 or rows > 1024 or dwell < 0 or dwell > 86_400 or policy == "x"
    else:
        assert Tunables.from_user_config(json.loads(json.dumps(after.to_user_config()))) == after


def test_the_file_keeps_what_was_tuned_and_refuses_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "run" / "tuning.json"
    save(path, start())
    assert tune(path, {"shaping.policy": "off"}).version == 1
    with pytest.raises(SettingsError):
        tune(path, {"batching.max_rows": 0})
    with pytest.raises(SettingsError, match="'nano'"):
        tune(path, {"shaping.fallback_point": "nano"}, check_points(["full"]))
    assert load(path).shaping.policy == "off"
    assert load(path).version == 1


def test_tuning_a_server_that_was_never_started_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="start the server first"):
        tune(tmp_path / "tuning.json", {"shaping.policy": "off"})


def test_the_watcher_reports_each_new_content_once(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    save(path, start())
    watcher = TuningWatcher(path, start())
    assert watcher.poll() is None
    tune(path, {"batching.max_rows": 4})
    found = watcher.poll()
    assert found is not None
    assert found.batching.max_rows == 4
    assert watcher.poll() is None


@pytest.mark.parametrize("content", ["{", "[]", '{"batching": {"max_rows": 0}}', '{"shaping": {"polcy": 1}}'])
def test_an_invalid_edit_is_refused_and_the_old_values_stay(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tuning.json"
    save(path, start())
    watcher = TuningWatcher(path, start())
    path.write_text(content)
    assert watcher.poll() is None
    assert watcher.current == start()
    save(path, start().apply({"batching.max_rows": 3}))
    found = watcher.poll()
    assert found is not None
    assert found.batching.max_rows == 3


def test_a_hand_edit_without_a_version_counts_up_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    watcher = TuningWatcher(path, start().apply({"cache.ttl_s": 5}))
    path.write_text(json.dumps({"batching": {"max_rows": 2}}))
    found = watcher.poll()
    assert found is not None
    assert (found.version, found.batching.max_rows) == (2, 2)


def test_the_watcher_checks_names_against_the_family(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    save(path, start().apply({"shaping.policy": "pin", "shaping.pin_point": "gone"}))
    watcher = TuningWatcher(path, start(), check_points(["full"]))
    assert watcher.poll() is None
    assert watcher.current == start()


async def test_watching_survives_a_push_that_fails_and_loses_no_change(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    save(path, start())
    taken: list[int] = []
    done = asyncio.Event()

    async def push(tunables: Tunables) -> None:
        taken.append(tunables.batching.max_rows)
        if len(taken) == 1:
            raise ConnectionError("the cluster is busy")
        done.set()

    task = asyncio.create_task(TuningWatcher(path, start()).watch(push, period_s=0.01))
    tune(path, {"batching.max_rows": 7})
    await asyncio.wait_for(done.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert taken == [7, 7]


def test_a_tuner_that_was_stopped_holds_up_neither_the_server_nor_the_next_one_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tuning.json"
    begin(file, start())
    watcher = TuningWatcher(file, start())
    watcher.poll()
    content = json.loads(file.read_bytes())
    content["cache"]["ttl_s"] = 77
    file.write_text(json.dumps(content))
    with (tmp_path / ".tuning.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        taken = watcher.poll()
        monkeypatch.setattr(tuning, "LOCK_WAIT_S", 0.1)
        with pytest.raises(TimeoutError, match="another change"):
            tune(file, {"cache.ttl_s": 88})
    assert taken is not None
    assert taken.cache.ttl_s == 77
    assert tune(file, {"cache.ttl_s": 88}).cache.ttl_s == 88


def test_two_tuners_at_once_lose_no_change(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    save(path, start())

    def turn(key: str) -> None:
        for value in range(20, 40):
            tune(path, {key: value})

    with ThreadPoolExecutor() as tuners:
        list(tuners.map(turn, ("batching.max_rows", "batching.max_tokens", "cache.ttl_s")))
    end = load(path)
    assert (end.batching.max_rows, end.batching.max_tokens, end.cache.ttl_s) == (39, 39, 39)
    assert end.version == 60
