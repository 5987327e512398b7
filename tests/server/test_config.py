"""The settings: layers, origins, and errors that say what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError

from server.config import Settings, SettingsError, load
from server.config_problems import leaves, problems_of


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("JOULESERVE_"):
            monkeypatch.delenv(name)


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(write(folder, text))
    return caught.value.problems


def test_the_defaults_are_valid_and_every_field_says_what_it_trades(tmp_path: Path) -> None:
    loaded = load(folder=tmp_path)
    assert loaded.settings == Settings()
    for row in loaded.effective():
        assert row.origin == "default"
        assert len(row.description) > 20, row.key


def test_later_sources_win_and_each_value_knows_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "server: {port: 8001, host: 0.0.0.0, metrics_port: 9401}\n")
    monkeypatch.setenv("JOULESERVE_SERVER__PORT", "8002")
    monkeypatch.setenv("JOULESERVE_SHAPING__FLOORS__ECO", "0.8")
    monkeypatch.setenv("JOULESERVE_SERVER__METRICS_PORT", "9402")
    loaded = load(path, {"server.metrics_port": "9403"})
    server = loaded.settings.server
    assert (server.host, server.port, server.metrics_port) == ("0.0.0.0", 8002, 9403)
    assert loaded.settings.shaping.floors.eco == 0.8
    origins = {row.key: row.origin for row in loaded.effective()}
    assert origins["server.host"] == f"file {path}"
    assert origins["server.port"] == "env JOULESERVE_SERVER__PORT"
    assert origins["server.metrics_port"] == "command line"
    assert origins["shaping.floors.eco"] == "env JOULESERVE_SHAPING__FLOORS__ECO"
    assert origins["shaping.floors.standard"] == "default"


def test_the_default_file_is_read_where_it_is_present(tmp_path: Path) -> None:
    (tmp_path / "jouleserve.yaml").write_text("batching: {max_rows: 4}\n")
    assert load(folder=tmp_path).settings.batching.max_rows == 4


def test_an_explanation_is_yaml_that_loads_to_the_same_settings(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, "shaping: {policy: pin, pin_point: lite}\ngrid: {zone: X}\n"))
    again = load(write(tmp_path, loaded.explain()))
    assert again.settings == loaded.settings


def test_a_bare_off_is_the_policy_and_not_a_boolean(tmp_path: Path) -> None:
    assert load(write(tmp_path, "shaping:\n  policy: off\n")).settings.shaping.policy == "off"


def test_a_section_with_all_its_fields_commented_out_is_empty(tmp_path: Path) -> None:
    assert load(write(tmp_path, "server:\n  # port: 1\n")).settings == Settings()


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ("server: {prt: 1}", "server.prt: unknown key", "did you mean 'server.port'?"),
        ("serv: {port: 1}", "serv: unknown key", "did you mean 'server'?"),
        ("port: 1", "port: unknown key", "did you mean 'server.port'?"),
        ("shaping: {floors: {echo: 1}}", "shaping.floors.echo: unknown key", "'shaping.floors.eco'"),
        ("server: {port: eight}", "server.port: 'eight' is wrong", "default 8000"),
        ("server: {port: yes}", "server.port: a yes/no value", "give a number"),
        ("server: 5", "server: 5 is not a group", "write its fields below it"),
        ("cache: {ttl_s: .nan}", "cache.ttl_s:", "default 300"),
        ("grid: {provider: us}", "grid.provider: 'us' is not a choice", "'electricity_maps' or 'watttime'"),
        ("grid: {provider: replay}", "grid.replay_path: missing", "give a CSV"),
        ("grid: {replay_path: nowhere.csv}", "grid.replay_path: nowhere.csv does not exist", "give the path"),
        ("grid: {provider: electricity_maps, secret: x}", "grid.zone: missing", "name the zone"),
        ("grid: {provider: electricity_maps, zone: DE}", "grid.secret_file: missing", "JOULESERVE_GRID__SECRET"),
        ("grid: {provider: watttime, zone: DE, secret: x}", "grid.username: missing", "the account's name"),
        ("grid: {provider: uk, measure: marginal}", "grid.measure: 'uk' tells averages alone", "take average"),
        ("grid: {secret_file: nowhere}", "grid.secret_file: nowhere does not exist", "a file that holds the secret"),
        ("grid: {provider: uk, zone: FR}", "grid.zone: the uk provider serves GB", "leave zone out"),
        ("shaping: {policy: pin}", "shaping.pin_point: missing", "name an operating point"),
        ("server: {port: 9400}", "server.metrics_port: 9400 is also server.port", "another port"),
        (
            "shaping: {clean_below_grams_per_kwh: 350}",
            "shaping.clean_below_grams_per_kwh: 350 is not below",
            "lower it or raise the other",
        ),
        (
            "shaping: {floors: {standard: 0.8}}",
            "shaping.floors.eco: 0.9 is above standard 0.8",
            "at or below standard",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(tmp_path: Path, text: str, key: str, remedy: str) -> None:
    (line,) = problems(tmp_path, text)
    assert line.startswith(key)
    assert remedy in line.split("; ", 1)[1]


def test_every_problem_is_listed_at_once_with_its_origin(tmp_path: Path) -> None:
    lines = problems(tmp_path, "server: {port: 0, host: 1}\nbatching: {max_rows: 0}\n")
    assert [line.split(":")[0] for line in lines] == ["server.host", "server.port", "batching.max_rows"]
    assert all(f"(file {tmp_path / 'settings.yaml'})" in line for line in lines)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (line,) = problems(tmp_path, text)
    assert line.startswith("config: ")


def test_a_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        load(tmp_path / "absent.yaml")


def test_a_misspelt_section_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JOULESERVE_SERVR__PORT", "1")
    with pytest.raises(SettingsError, match="JOULESERVE_SERVR__PORT: names no setting"):
        load(folder=tmp_path)


def test_a_misspelt_field_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JOULESERVE_SERVER__PRT", "1")
    with pytest.raises(SettingsError, match=r"env JOULESERVE_SERVER__PRT.*did you mean 'server.port'"):
        load(folder=tmp_path)


def test_the_text_null_clears_a_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path, "model: {version: 0001-abc}\nshaping: {pin_point: lite}\n")
    monkeypatch.setenv("JOULESERVE_MODEL__VERSION", "null")
    settings = load(path, {"shaping.pin_point": "null"}).settings
    assert settings.model.version is None
    assert settings.shaping.pin_point is None


def test_variables_of_other_tools_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JOULESERVE_TEST_DATA", "/somewhere")
    assert load(folder=tmp_path).settings == Settings()


def test_a_secret_is_never_printed_in_a_problem() -> None:
    class WithSecret(BaseModel):
        token: SecretStr

    with pytest.raises(ValidationError) as caught:
        WithSecret.model_validate({"token": 123456789})
    (line,) = problems_of(caught.value, WithSecret, {})
    assert "123456789" not in line


KEYS = dict(leaves(Settings))


@given(key=st.sampled_from(sorted(KEYS)), value=st.one_of(st.integers(), st.text(max_size=8), st.booleans()))
def test_any_single_override_is_taken_or_refused_by_its_own_name(key: str, value: object) -> None:
    try:
        loaded = load(None, {key: value}, folder=Path("/nonexistent"))
    except SettingsError as error:
        refused = error.problems
    else:
        refused = []
        assert loaded.origins == {key: "command line"}
        assert yaml.safe_load(loaded.explain())
    assert all(line.startswith(key.split(".")[0]) for line in refused)


def test_a_secret_is_masked_wherever_settings_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOULESERVE_GRID__SECRET", "tok-12345")
    file = tmp_path / "jouleserve.yaml"
    file.write_text("grid: {provider: electricity_maps, zone: DE}")
    loaded = load(file)
    assert loaded.settings.grid.secret is not None
    assert loaded.settings.grid.secret.get_secret_value() == "tok-12345"
    shown = loaded.explain() + repr(loaded.settings) + str(loaded.settings.model_dump(mode="json"))
    assert "tok-12345" not in shown
    assert "secret: '**********'  # env JOULESERVE_GRID__SECRET" in loaded.explain()
