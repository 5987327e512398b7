"""Builds the grid provider that the settings name, behind its ladder."""

from __future__ import annotations

from energy.grid.ladder import Ladder, Limits
from energy.grid.replay import BadRecording, ReplayProvider, read_recording
from energy.grid.signal import GridProvider, parse_utc
from energy.grid.static import StaticProvider
from server.config_problems import SettingsError
from server.settings import GridSettings, Settings


def make_ladder(settings: Settings) -> Ladder:
    """The ladder over the configured provider. Raises SettingsError if a recording cannot be played."""
    grid = settings.grid
    limits = Limits(
        live_max_age_s=grid.live_max_age_s,
        cached_max_age_s=grid.cached_max_age_s,
        forecast_max_age_s=grid.forecast_max_age_s,
        history_days=grid.history_days,
    )
    # A recording's times are not the wall clock's: kept on disk they would pass for history of the real grid.
    cache_path = settings.grid_cache_path if grid.provider == "uk" else None
    return Ladder(make_provider(grid), limits, cache_path)


def make_provider(grid: GridSettings) -> GridProvider:
    """The configured provider. A replay starts to play now. Raises SettingsError."""
    if grid.provider == "uk":
        # The only one that needs an HTTP client, which takes a fifth of a second to import.
        from energy.grid.uk import UkProvider

        return UkProvider(grid.uk_base_url, grid.request_timeout_s, grid.max_attempts)
    if grid.provider == "replay":
        return _replay(grid)
    return StaticProvider(grid.static_grams_per_kwh, grid.zone)


def _replay(grid: GridSettings) -> ReplayProvider:
    path = grid.replay_path
    if path is None:
        raise SettingsError(["grid.replay_path: missing although provider is 'replay'; give a CSV"])
    start = None if grid.replay_start is None else parse_utc(grid.replay_start.isoformat())
    try:
        return ReplayProvider(read_recording(path), grid.zone or path.name.split(".")[0], grid.replay_speed, start)
    except BadRecording as error:
        raise SettingsError([f"grid.replay_path: {error}"]) from None
