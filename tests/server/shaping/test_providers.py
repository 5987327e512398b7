"""The settings choose the provider."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from energy.grid.signal import Refused
from server.config import Settings, SettingsError
from server.shaping.providers import choice_of, make_ladder, past_of


def settings(tmp_path: Path, **grid: Any) -> Settings:
    return Settings.model_validate({"grid": grid, "server": {"run_dir": tmp_path}})


async def test_without_a_word_the_provider_is_the_assumed_world_mean(tmp_path: Path) -> None:
    outcome = await make_ladder(settings(tmp_path)).read()
    assert outcome.reading is not None
    assert (outcome.reading.kind, outcome.reading.estimated, outcome.reading.zone) == ("static", True, "world")


async def test_a_replay_is_named_after_its_file_and_starts_where_told(tmp_path: Path) -> None:
    path = tmp_path / "GB.csv.gz"
    path.write_bytes(gzip.compress(b"utc_time,ci_lifecycle\n2024-05-01T00:00,100\n2024-05-01T01:00,200\n"))
    chosen = settings(tmp_path, provider="replay", replay_path=path, replay_start="2024-05-01T01:10:00")
    outcome = await make_ladder(chosen).read()
    assert outcome.reading is not None
    assert (outcome.reading.zone, outcome.reading.grams_per_kwh, outcome.reading.kind) == ("GB", 200, "replay")


@pytest.mark.parametrize(
    ("content", "start", "said"),
    [
        ("utc_time,ci\n", None, "no value column"),
        ("utc_time,ci_lifecycle\n2024-05-01,1\n2024-05-02,2\n", "2030-01-01", "lies outside the recording"),
    ],
)
def test_a_recording_that_cannot_be_played_is_a_settings_error(
    tmp_path: Path, content: str, start: str | None, said: str
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(SettingsError, match=f"grid.replay_path: .*{said}"):
        make_ladder(settings(tmp_path, provider="replay", replay_path=path, replay_start=start))


def test_a_provider_with_a_secret_reads_its_file_at_each_use(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    chosen = settings(tmp_path, provider="electricity_maps", zone="DE", secret_file=file)
    secret = choice_of(chosen.grid).secret
    assert secret is not None
    assert secret() == "one"
    file.write_text("two")
    assert secret() == "two"
    file.write_text("two words")
    with pytest.raises(Refused, match="more than one word") as caught:
        secret()
    assert "two words" not in str(caught.value)
    assert make_ladder(chosen).provider.name == "electricity_maps"


def test_the_line_break_of_an_environment_s_secret_is_none_of_it(tmp_path: Path) -> None:
    secret = choice_of(settings(tmp_path, provider="electricity_maps", zone="DE", secret="token\n").grid).secret
    assert secret is not None
    assert secret() == "token"


def test_watttime_asks_for_the_measure_of_the_settings(tmp_path: Path) -> None:
    base = {"provider": "watttime", "zone": "PSCO", "username": "ann", "secret": "x"}
    assert make_ladder(settings(tmp_path, **base)).provider.name == "watttime"
    assert make_ladder(settings(tmp_path, **base, measure="marginal")).provider.name == "watttime_marginal"


async def test_a_replay_gives_the_forecasts_that_had_been_issued(tmp_path: Path) -> None:
    path, ahead = tmp_path / "GB.csv", tmp_path / "ahead.csv"
    path.write_text("utc_time,ci_lifecycle\n2024-05-01T00:00,100\n2024-05-02T00:00,200\n2024-05-03T00:00,200\n")
    rows = [f"2024-05-0{day}T00:00,2024-05-0{day}T0{hour}:00,{day}{hour}0" for day in (1, 2) for hour in range(3)]
    ahead.write_text("\n".join(["issued_utc,target_utc,forecast", *rows]))
    chosen = {"provider": "replay", "replay_path": path, "replay_forecast_path": ahead}
    ladder = make_ladder(settings(tmp_path, **chosen, replay_start="2024-05-02T01:10:00"))
    await ladder.read()
    assert [p.grams_per_kwh for p in ladder.forecast()] == [210, 220]
    ahead.write_text("\n".join(["issued_utc,target_utc,forecast", rows[0], rows[2]]))
    with pytest.raises(SettingsError, match=r"grid.replay_forecast_path: .*row 2: .*does not follow"):
        make_ladder(settings(tmp_path, **chosen))


def test_only_a_live_provider_keeps_its_history_on_disk(tmp_path: Path) -> None:
    uk = make_ladder(settings(tmp_path, provider="uk", zone="GB"))
    assert (uk.provider.name, uk.provider.zone) == ("uk", "GB")
    assert uk._cache_path == tmp_path / "grid-cache.json"
    assert make_ladder(settings(tmp_path))._cache_path is None


def test_a_recorded_year_is_read_by_the_hour_and_its_gaps_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "DE.csv"
    path.write_text(
        "utc_time,ci_lifecycle\n2024-05-01T00:00,100\n2024-05-01T00:30,110\n2024-05-01T01:00,\n2024-05-01T01:30,120\n"
    )
    assert past_of(settings(tmp_path, history_path=path).grid) == (100, 120)
    assert past_of(settings(tmp_path).grid) == ()
    path.write_text("utc_time\n2024\n")
    with pytest.raises(SettingsError, match=r"grid\.history_path"):
        past_of(settings(tmp_path, history_path=path).grid)
