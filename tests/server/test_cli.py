"""The command line: what is wrong is named with its remedy, exit code 2, and nothing is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.store import Store, Version
from server.cli import app
from server.config import Settings, SettingsError
from server.shaping.tunables import Tunables
from server.shaping.tuning import audit_path, begin, load
from tests.support.tiny_family import publish_tiny_family


def jouleserve(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("assignment", "named", "remedy"),
    [
        ("server.prt=1", "server.prt", "did you mean 'server.port'"),
        ("server.port=abc", "server.port", "integer"),
        ("shaping.clean_below_grams_per_kwh=900", "shaping.clean_below_grams_per_kwh", "lower it or raise the other"),
        ("nonsense", "nonsense", "section.field=value"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy_and_nothing_starts(
    tmp_path: Path, assignment: str, named: str, remedy: str
) -> None:
    done = jouleserve(tmp_path, "up", "--set", assignment)
    assert done.returncode == 2
    assert named in done.stderr
    assert remedy in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_value_in_the_environment_is_named_too(tmp_path: Path) -> None:
    done = jouleserve(tmp_path, "up", JOULESERVE_BATCHING__MAX_ROWS="none")
    assert done.returncode == 2
    assert "batching.max_rows" in done.stderr


def test_a_family_that_is_not_there_says_how_to_compile_one(tmp_path: Path) -> None:
    done = jouleserve(tmp_path, "up", "--family", "nope")
    assert done.returncode == 2
    assert "jouleserve-compile run" in done.stderr


def test_a_family_whose_name_is_mistyped_says_which_there_are(tmp_path: Path, tiny_version: Version) -> None:
    done = jouleserve(tmp_path, "up", "--family", "tinny", "--store", str(tiny_version.path.parent.parent))
    assert done.returncode == 2
    assert "no family 'tinny'" in done.stderr
    assert "there are tiny" in done.stderr


def test_what_was_given_is_repeated_to_the_letter(tmp_path: Path) -> None:
    done = jouleserve(tmp_path, "up", "--set", "server.port=[red]8000[/bold]")
    assert done.returncode == 2
    assert "'[red]8000[/bold]' is wrong" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["calibrate", "--watts", "0=38", "--watts", "1=90", "--out", "a-file/calibration.json"],
        ["models", "use", "0001-000000000000", "--set", "model.store=a-file"],
        ["up", "--store", "a-file"],
        ["up", "--config", "a-file/jouleserve.yaml"],
        ["replay", "--grid", "a-file/day.csv", "--small-share", "0.5"],
        ["report", "--from", "2026-01-01", "--to", "2026-01-02", "--hours", "a-file"],
    ],
    ids=" ".join,
)
def test_a_path_that_cannot_be_used_is_named_without_a_traceback(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "a-file").write_text("in the way")
    done = jouleserve(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert "a-file" in done.stderr
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr


def test_the_release_is_told(tmp_path: Path) -> None:
    done = jouleserve(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"jouleserve {version('jouleserve')}\n")


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path, tiny_version: Version) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        store = str(tiny_version.path.parent.parent)
        done = jouleserve(tmp_path, "up", "--family", "tiny", "--store", store, "--set", f"server.port={port}")
    assert done.returncode == 2
    assert "server.port" in done.stderr
    assert not (tmp_path / "var").exists()


def test_config_prints_values_in_force_with_their_origin(tmp_path: Path) -> None:
    (tmp_path / "jouleserve.yaml").write_text("server:\n  port: 8111\n")
    done = jouleserve(tmp_path, "config", JOULESERVE_CACHE__TTL_S="7")
    assert done.returncode == 0
    assert "port: 8111  # file jouleserve.yaml" in done.stdout
    assert "ttl_s: 7.0  # env JOULESERVE_CACHE__TTL_S" in done.stdout


def test_versions_are_listed_and_an_older_one_can_be_made_current(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    older = publish_tiny_family(store)
    newer = publish_tiny_family(store, scale=2.0)
    assert store.current("tiny") == newer.name
    place = ["--set", f"model.store={store.root}", "--set", "model.family=tiny"]
    listed = jouleserve(tmp_path, "models", "list", *place, COLUMNS="160")
    assert older.name in listed.stdout
    assert newer.name in listed.stdout
    used = jouleserve(tmp_path, "models", "use", older.name, *place)
    assert used.returncode == 0, used.stderr
    assert store.current("tiny") == older.name


def test_a_version_of_another_family_is_made_current_by_the_options_of_up(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    older = publish_tiny_family(store)
    publish_tiny_family(store, scale=2.0)
    used = jouleserve(tmp_path, "models", "use", older.name, "--family", "tiny", "--store", str(store.root))
    assert used.returncode == 0, used.stderr
    assert store.current("tiny") == older.name


def test_an_empty_store_says_how_to_fill_it(tmp_path: Path) -> None:
    listed = jouleserve(tmp_path, "models", "list")
    assert listed.returncode == 0
    assert "var/store: nothing is published" in listed.stdout
    assert "jouleserve-compile run" in listed.stdout


def test_tuning_says_first_that_no_server_runs_and_not_that_its_family_is_missing(tmp_path: Path) -> None:
    done = jouleserve(tmp_path, "tune", "batching.max_rows=4")
    assert done.returncode == 2
    assert "start the server" in done.stderr
    assert list(tmp_path.iterdir()) == []
    history = jouleserve(tmp_path, "tune", "--history")
    assert "no server ran here yet" in history.stdout


def test_tuning_a_server_that_does_not_run_says_so(tmp_path: Path, tiny_version: Version) -> None:
    store = str(tiny_version.path.parent.parent)
    place = ["--set", f"model.store={store}", "--set", "model.family=tiny"]
    done = jouleserve(tmp_path, "tune", "batching.max_rows=4", *place)
    assert done.returncode == 2
    assert "start the server" in done.stderr


def test_a_log_of_changes_that_cannot_be_written_is_told_and_nothing_is_tuned(
    tmp_path: Path, tiny_version: Version
) -> None:
    file = tmp_path / "run" / "tuning.json"
    begin(file, Tunables.of(Settings()))
    audit_path(file).unlink()
    audit_path(file).mkdir()
    store = str(tiny_version.path.parent.parent)
    place = ["--set", f"model.store={store}", "--set", "model.family=tiny", "--set", f"server.run_dir={file.parent}"]
    for words in (["cache.ttl_s=9"], ["--undo"]):
        told = CliRunner().invoke(app, ["tune", *words, *place]).exception
        assert isinstance(told, SettingsError)
        assert "tuning-audit.jsonl: Is a directory; use it as the server's user" in told.problems[0]
    assert load(file).version == 0


def test_conserving_without_a_server_says_how_to_start_one(tmp_path: Path) -> None:
    done = jouleserve(tmp_path, "conserve", "--set", "server.metrics_port=1")
    assert done.returncode == 1
    assert "jouleserve up" in done.stdout
