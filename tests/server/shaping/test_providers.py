"""The settings choose the provider."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from server.config import Settings, SettingsError
from server.shaping.providers import make_ladder


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


def test_only_a_live_provider_keeps_its_history_on_disk(tmp_path: Path) -> None:
    uk = make_ladder(settings(tmp_path, provider="uk", zone="GB"))
    assert (uk.provider.name, uk.provider.zone) == ("uk", "GB")
    assert uk._cache_path == tmp_path / "grid-cache.json"
    assert make_ladder(settings(tmp_path))._cache_path is None
