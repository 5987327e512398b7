"""Which provider to ask, as data, and the provider made of it. Libraries that a provider needs are loaded with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from energy.grid.replay import BadRecording, ReplayProvider, read_forecasts, read_recording
from energy.grid.signal import GridProvider, Measure, Refused
from energy.grid.static import StaticProvider

ProviderName = Literal["static", "replay", "uk", "electricity_maps", "watttime"]
LIVE: tuple[ProviderName, ...] = ("uk", "electricity_maps", "watttime")
"""Those that tell of now, whose past is worth keeping."""


class BadChoice(Exception):
    """The choice cannot be followed. `field` is the wrong one of `GridChoice`; the message says what and the remedy."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class GridChoice:
    """What a provider needs to know. `secret` is Electricity Maps' token or WattTime's password; `secret_file`, a file
    that holds it, is read again at each use. Neither is ever shown."""

    provider: ProviderName = "static"
    zone: str | None = None
    static_grams_per_kwh: float | None = None
    replay_path: Path | None = None
    replay_speed: float = 1.0
    replay_start: datetime | None = None
    replay_began: datetime | None = None
    replay_forecast_path: Path | None = None
    username: str | None = None
    secret: Callable[[], str] | None = None
    measure: Measure = "average"
    base_url: str | None = None
    timeout_s: float = 10.0
    max_attempts: int = 3


def secret_of_file(path: Path) -> Callable[[], str]:
    """Reads the secret at each call. The call raises Refused, which names the file and nothing of its content."""

    def read() -> str:
        try:
            secret = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"{path}: {type(error).__name__}; give a readable file that holds the secret") from None
        if not secret or len(secret.split()) != 1:
            raise Refused(f"{path}: holds no secret, or more than one word; write the secret alone")
        return secret

    return read


def make_provider(choice: GridChoice) -> GridProvider:
    """The provider. A replay starts to play now. Raises BadChoice."""
    assert choice.provider in get_args(ProviderName)
    if choice.provider == "static":
        return StaticProvider(choice.static_grams_per_kwh, choice.zone)
    if choice.provider == "replay":
        return _replay(choice)
    # Those that ask over HTTP need a client, which takes a fifth of a second to import.
    from energy.grid.http import Patience

    patience = Patience(choice.timeout_s, choice.max_attempts)
    where = {} if choice.base_url is None else {"base_url": choice.base_url}
    if choice.provider == "uk":
        from energy.grid.uk import UkProvider

        if choice.zone not in (None, UkProvider.zone):
            raise BadChoice("zone", f"uk serves {UkProvider.zone}, not {choice.zone!r}; leave the zone out")
        return UkProvider(patience=patience, **where)
    if choice.zone is None:
        raise BadChoice("zone", f"missing although provider is '{choice.provider}'; name the zone")
    if choice.secret is None:
        raise BadChoice("secret", f"missing although provider is '{choice.provider}'; give it or a file that holds it")
    if choice.provider == "electricity_maps":
        from energy.grid.electricity_maps import ElectricityMapsProvider

        return ElectricityMapsProvider(choice.zone, choice.secret, patience=patience, **where)
    from energy.grid.watttime import WattTimeProvider

    if choice.username is None:
        raise BadChoice("username", "missing although provider is 'watttime'; give the account's name")
    signal: Literal["co2_aoer", "co2_moer"] = "co2_aoer" if choice.measure == "average" else "co2_moer"
    return WattTimeProvider(choice.zone, choice.username, choice.secret, signal, patience=patience, **where)


def _replay(choice: GridChoice) -> ReplayProvider:
    path, ahead = choice.replay_path, choice.replay_forecast_path
    if path is None:
        raise BadChoice("replay_path", "missing although provider is 'replay'; give a CSV")
    try:
        forecasts = None if ahead is None else read_forecasts(ahead)
    except BadRecording as error:
        raise BadChoice("replay_forecast_path", str(error)) from None
    try:
        zone = choice.zone or path.name.split(".")[0]
        clock, began_s = time.monotonic, None
        if choice.replay_began is not None:  # a time of the real clock, which alone outlives this process
            clock, began_s = time.time, choice.replay_began.timestamp()
        return ReplayProvider(
            read_recording(path), zone, choice.replay_speed, choice.replay_start, clock, forecasts, began_s
        )
    except BadRecording as error:
        raise BadChoice("replay_path", str(error)) from None
