"""Where a replay's grid and load come from: files, what a provider and the running server know, and Prometheus."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from energy.grid.choice import LIVE
from energy.grid.memory import Memory
from energy.grid.replay import BadRecording, Recording, read_recording
from energy.grid.signal import GridError, Implausible, Intensity
from models.urls import without_secrets
from server.config_problems import SettingsError
from server.replay.errors import ReplayError
from server.settings import Settings
from server.shaping.providers import make_ladder

RATE_COLUMN = "requests_per_s"
LOAD_COLUMNS = ("count", "requests", RATE_COLUMN, "load", "value")
"""Requests in the row's period, but for the rate."""
LOAD_DAYS = 28
LOAD_QUERY = 'sum(increase(jouleserve_requests_total{class="standard",outcome!="refused"}[1h]))'
PROMETHEUS_TIMEOUT_S = 30.0
HOUR = timedelta(hours=1)


def read_grid(grid: str, settings: Settings) -> tuple[str, Recording]:
    """Zone and recording of a CSV's path, or, where `grid` names the settings' live provider, of what it and the
    server's own cache know of the past weeks. Raises ReplayError."""
    if grid in LIVE:
        return _known_of(grid, settings)
    path = Path(grid)
    try:
        return path.name.split(".")[0], read_recording(path)
    except BadRecording as error:
        raise ReplayError(f"--grid: {error}") from None


def read_load(load: str) -> Recording:
    """Requests a second of a CSV's path or of a Prometheus server's address. Raises ReplayError."""
    if load.startswith(("http://", "https://")):
        return _per_second(_load_of_prometheus(load))
    try:
        recording = read_recording(Path(load), LOAD_COLUMNS, _countable)
    except BadRecording as error:
        raise ReplayError(f"--load: {error}; or give flat or diurnal") from None
    return recording if recording.column == RATE_COLUMN else _per_second(recording)


def _per_second(counted: Recording) -> Recording:
    """Of the requests of every row, requests a second."""
    rates = tuple(
        None if count is None else count / counted.holds(row).total_seconds()
        for row, count in enumerate(counted.grams_per_kwh)
    )
    return replace(counted, grams_per_kwh=rates)


def _known_of(grid: str, settings: Settings) -> tuple[str, Recording]:
    if settings.grid.provider != grid:
        raise ReplayError(f"--grid: the settings' provider is '{settings.grid.provider}'; set grid.provider={grid}")
    try:
        provider = make_ladder(settings).provider
    except SettingsError as error:
        raise ReplayError("; ".join(error.problems)) from None
    # Read beside a running server, whose poller alone writes it.
    memory = Memory.load(settings.grid_cache_path, provider.name, provider.zone)

    async def ask() -> Sequence[Intensity]:
        try:
            return await provider.history()
        finally:
            await provider.aclose()

    try:
        memory.learn(asyncio.run(ask()), settings.grid.history_days, provider.now())
    except GridError as error:
        if not memory.hours:
            raise ReplayError(f"--grid: {grid} gives no history ({error}), and the server has kept none") from None
    return provider.zone, _hourly(memory.past())


def _hourly(past: Sequence[Intensity]) -> Recording:
    if len(past) < 2:
        raise ReplayError("--grid: fewer than two hours are known; give a CSV")
    by_hour = {reading.time: reading.grams_per_kwh for reading in past}
    count = round((past[-1].time - past[0].time) / HOUR) + 1
    times = tuple(past[0].time + HOUR * hour for hour in range(count))
    return Recording(times, tuple(by_hour.get(moment) for moment in times), HOUR)


def _load_of_prometheus(url: str) -> Recording:
    """Standard requests of the past weeks, hour by hour."""
    shown = without_secrets(url)
    end = int(time.time()) // 3600 * 3600
    asked = {"query": LOAD_QUERY, "start": str(end - LOAD_DAYS * 86_400), "end": str(end), "step": "3600"}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/api/v1/query_range", params=asked, timeout=PROMETHEUS_TIMEOUT_S)
        tree = answer.json()
        if tree.get("status") != "success":
            raise ReplayError(f"--load: {shown} says {tree.get('error', answer.status_code)}")
        series = tree["data"]["result"]
        points = [(float(moment), float(value)) for moment, value in series[0]["values"]] if series else []
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReplayError(f"--load: {shown} gives no answer of Prometheus' ({type(error).__name__})") from None
    counted = [(moment, _countable(value)) for moment, value in points if math.isfinite(value) and value >= 0]
    if len(counted) < 2:
        raise ReplayError(
            f"--load: {shown} knows of no jouleserve requests in {LOAD_DAYS} days; does it scrape /metrics?"
        )
    # An increase over an hour is of the hour that it ends.
    times = tuple(datetime.fromtimestamp(moment, UTC) - HOUR for moment, _ in counted)
    return Recording(times, tuple(value for _, value in counted), HOUR)


def _countable(requests: float) -> float:
    if not math.isfinite(requests) or requests < 0:
        raise Implausible(f"{requests} is no number of requests")
    return requests
