"""Hourly rows out of a Prometheus server that scrapes `/metrics`, for who keeps the figures there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx

from server.node.hours import HOUR_S, Series, hour_of, series
from server.node.metric_table import COUNTER, METRICS, exposed_name
from server.report.errors import ReportError
from server.report.rows import HourRow

TIMEOUT_S = 30.0
MACHINES = "jouleserve_power_usage_effectiveness_ratio"
"""A gauge that every node process always shows: it tells how many there were."""
MINUTES = 60
MAX_HOURS = 9000
"""A year and a bit; Prometheus gives at most 11,000 points a series."""


def read_prometheus(url: str, begin: str, end: str) -> list[HourRow]:
    """Rows of the hours from `begin` up to, but not with, `end`. Raises ReportError."""
    first, last = (int(datetime.fromisoformat(text).timestamp()) for text in (begin, end))
    if not 0 < last - first <= MAX_HOURS * HOUR_S:
        raise ReportError(f"from {begin} to {end}: give one hour to {MAX_HOURS} hours")
    counters: dict[str, dict[Series, float]] = {}
    with httpx.Client(base_url=url.rstrip("/"), timeout=TIMEOUT_S) as client:
        for name, (kind, _, _) in METRICS.items():
            if kind == COUNTER:
                _take_counter(client, exposed_name(name), first, last, counters)
        gauges = {
            name: _matrix(client, f"avg_over_time({name}[1h])", first, last)
            for name in (
                "jouleserve_grid_intensity_grams_per_kwh",
                "jouleserve_power_usage_effectiveness_ratio",
                "jouleserve_energy_relative_uncertainty_ratio",
                "jouleserve_dynamic_relative_uncertainty_ratio",
                "jouleserve_compile_joules",
                "jouleserve_compile_cpu_seconds",
            )
        }
        minutes = _matrix(client, f"count_over_time({MACHINES}[1h:1m])", first, last)
    if not counters:
        raise ReportError(
            f"{url}: no jouleserve figures from {begin} to {end}; is it the server that scrapes /metrics?"
        )
    return [replace(_row(hour, counters[hour], gauges), machines=_machines(hour, minutes)) for hour in sorted(counters)]


def _machines(hour: str, minutes: Sequence[tuple[Mapping[str, str], Mapping[str, float]]]) -> float:
    """The mean number of machines over an hour, by the minutes in which each was there; 1 if none says so."""
    return sum(min(values[hour], MINUTES) for _, values in minutes if hour in values) / MINUTES or 1.0


def _take_counter(
    client: httpx.Client, name: str, first: int, last: int, counters: dict[str, dict[Series, float]]
) -> None:
    for labels, values in _matrix(client, f"increase({name}[1h])", first, last):
        for hour, value in values.items():
            if value > 0:
                key = series(name, labels)
                row = counters.setdefault(hour, {})
                row[key] = row.get(key, 0.0) + value


def _matrix(client: httpx.Client, query: str, first: int, last: int) -> list[tuple[dict[str, str], dict[str, float]]]:
    """Each series' labels (without the scrape's own) and its values by the hour that they are of."""
    # A value at the end of an hour is about that hour.
    asked = {"query": query, "start": str(first + HOUR_S), "end": str(last), "step": str(HOUR_S)}
    try:
        answer = client.get("/api/v1/query_range", params=asked)
        tree = answer.json()
        if tree.get("status") != "success":
            raise ReportError(f"{client.base_url}: {tree.get('error', answer.status_code)} (query {query})")
        found = []
        for row in tree["data"]["result"]:
            labels = {k: v for k, v in row["metric"].items() if k not in ("__name__", "job", "instance")}
            values = {hour_of(float(time_s) - HOUR_S): float(value) for time_s, value in row["values"]}
            found.append((labels, values))
        return found
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{client.base_url}: no answer of Prometheus ({error}); check the URL") from None


def _row(hour: str, counters: Mapping[Series, float], gauges: Mapping[str, Any]) -> HourRow:
    def by(name: str, label: str) -> dict[str, float]:
        return {labels.get(label, ""): values[hour] for labels, values in gauges[name] if hour in values}

    grid = [
        (labels, values[hour]) for labels, values in gauges["jouleserve_grid_intensity_grams_per_kwh"] if hour in values
    ]
    pue = [values[hour] for _, values in gauges["jouleserve_power_usage_effectiveness_ratio"] if hour in values]
    joules, cpu_seconds = (by(f"jouleserve_compile_{what}", "variant") for what in ("joules", "cpu_seconds"))
    return HourRow(
        hour=hour,
        seconds=float(HOUR_S),
        counters=counters,
        intensity=sum(value for _, value in grid) / len(grid) if grid else None,
        intensity_kinds={labels.get("kind", ""): float(HOUR_S) / len(grid) for labels, _ in grid},
        pue=max(pue, default=1.0),
        uncertainty=by("jouleserve_energy_relative_uncertainty_ratio", "source"),
        dynamic_uncertainty=by("jouleserve_dynamic_relative_uncertainty_ratio", "source"),
        zone=grid[-1][0].get("zone", "") if grid else "",
        provider=grid[-1][0].get("provider", "") if grid else "",
        compiled=tuple(
            {"variant": name, "joules": joules.get(name), "cpu_seconds": cpu_seconds.get(name), "source": None}
            for name in sorted({*joules, *cpu_seconds})
        ),
    )
