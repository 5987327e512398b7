"""Builds the grid provider that the settings name, behind its ladder."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import SecretStr

from energy.grid.choice import LIVE, BadChoice, GridChoice, make_provider, secret_of_file
from energy.grid.ladder import Ladder, Limits
from energy.grid.replay import BadRecording, ReplayProvider, read_recording
from energy.grid.signal import parse_utc
from server.config_problems import SettingsError
from server.settings import GridSettings, Settings


def make_ladder(settings: Settings) -> Ladder:
    """The ladder over the configured provider. Raises SettingsError if there is none to be made."""
    grid = settings.grid
    # A recording's times are not the wall clock's: kept on disk they would pass for history of the real grid.
    cache_path = settings.grid_cache_path if grid.provider in LIVE else None
    try:
        provider = make_provider(choice_of(grid))
    except BadChoice as error:
        raise SettingsError([f"grid.{error.field}: {error}"]) from None
    ladder = Ladder(provider, limits_of(grid), cache_path)
    if isinstance(provider, ReplayProvider):
        ladder.learn(provider.past(grid.history_days))
    return ladder


def limits_of(grid: GridSettings) -> Limits:
    """How old a rung may be, by the settings."""
    return Limits(
        live_max_age_s=grid.live_max_age_s,
        cached_max_age_s=grid.cached_max_age_s,
        forecast_max_age_s=grid.forecast_max_age_s,
        history_days=grid.history_days,
    )


def choice_of(grid: GridSettings) -> GridChoice:
    """What the settings say of the provider."""
    secret = None
    if grid.secret_file is not None:
        secret = secret_of_file(grid.secret_file)
    elif grid.secret is not None:
        secret = _stripped(grid.secret)
    return GridChoice(
        provider=grid.provider,
        zone=grid.zone,
        static_grams_per_kwh=grid.static_grams_per_kwh,
        replay_path=grid.replay_path,
        replay_speed=grid.replay_speed,
        replay_start=None if grid.replay_start is None else parse_utc(grid.replay_start.isoformat()),
        replay_began=None if grid.replay_began is None else parse_utc(grid.replay_began.isoformat()),
        replay_forecast_path=grid.replay_forecast_path,
        username=grid.username,
        secret=secret,
        measure=grid.measure,
        base_url=grid.base_url,
        timeout_s=grid.request_timeout_s,
        max_attempts=grid.max_attempts,
    )


def _stripped(secret: SecretStr) -> Callable[[], str]:
    """The secret without the line break that an environment's, as a file's, often ends with."""
    return lambda: secret.get_secret_value().strip()


def past_of(grid: GridSettings) -> tuple[float, ...]:
    """The zone's past that the settings name, gCO2e/kWh by the hour, oldest first. Raises SettingsError."""
    if grid.history_path is None:
        return ()
    try:
        recording = read_recording(grid.history_path)
    except BadRecording as error:
        raise SettingsError([f"grid.history_path: {error}"]) from None
    hours: dict[int, float] = {}
    for moment, grams in zip(recording.times, recording.grams_per_kwh, strict=True):
        if grams is not None:
            hours.setdefault(int(moment.timestamp()) // 3600, grams)
    return tuple(hours[hour] for hour in sorted(hours))
