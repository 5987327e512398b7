"""Hourly rows out of a Prometheus server that scrapes `/metrics`, for who keeps the figures there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from models.urls import without_secrets
from server.node.hours import HOUR_S, Series, hour_of, series
from server.node.metric_table import COUNTER, METRICS, exposed_name
from server.report.errors import ReportError
from server.report.rows import HourRow

TIMEOUT_S = 30.0
MACHINES = "jouleserve_power_usage_effectiveness_ratio"
"""A gauge that every node process always shows: it tells how many there were, and when."""
INTENSITY = "max by (zone, provider, kind) (jouleserve_grid_intensity_grams_per_kwh)"
"""Every node process shows the same reading."""
MINUTES, MINUTE_S = 60, 60.0
Matrix = Sequence[tuple[Mapping[str, str], Mapping[str, float]]]
"""Each series' labels, and its values by the hour that they are of."""
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
                "jouleserve_power_usage_effectiveness_ratio",
                "jouleserve_energy_relative_uncertainty_ratio",
                "jouleserve_dynamic_relative_uncertainty_ratio",
                "jouleserve_compile_joules",
                "jouleserve_compile_cpu_seconds",
            )
        }
        minutes = _Minutes(
            _matrix(client, f"count_over_time({MACHINES}[1h:1m])", first, last),
            _matrix(client, f"count_over_time(count({MACHINES})[1h:1m])", first, last),
            _matrix(client, f"count_over_time(({INTENSITY})[1h:1m])", first, last),
            _matrix(client, f"sum_over_time(({INTENSITY})[1h:1m])", first, last),
        )
    if not counters:
        shown = without_secrets(url)
        raise ReportError(
            f"{shown}: no jouleserve figures from {begin} to {end}; is it the server that scrapes /metrics?"
        )
    return [_row(hour, counters[hour], gauges, minutes) for hour in sorted(counters)]


@dataclass(frozen=True)
class _Minutes:
    """Of every hour: the minutes in which each machine was there, in which any was, in which the grid's intensity was
    known (by how it was), and the sum of those minutes' intensities."""

    machines: Matrix
    any_machine: Matrix
    known: Matrix
    grams: Matrix

    def metered_s(self, hour: str) -> float:
        """Seconds in which a machine was there; the whole hour if none says so."""
        return MINUTE_S * (_count(self.any_machine, hour) or MINUTES)

    def mean_machines(self, hour: str) -> float:
        """How many there were in the mean of that time; 1 if none says so."""
        return _count(self.machines, hour) * MINUTE_S / self.metered_s(hour) or 1.0

    def intensity(self, hour: str) -> float | None:
        """The mean of the minutes in which it was known."""
        known, grams = (sum(_values(matrix, hour)) for matrix in (self.known, self.grams))
        return grams / known if known else None

    def kinds(self, hour: str) -> dict[str, float]:
        """Seconds by how the intensity was known."""
        found: dict[str, float] = {}
        for labels, values in self.known:
            if hour in values:
                kind = labels.get("kind", "")
                found[kind] = found.get(kind, 0.0) + MINUTE_S * min(values[hour], MINUTES)
        return found


def _values(matrix: Matrix, hour: str) -> list[float]:
    return [values[hour] for _, values in matrix if hour in values]


def _count(matrix: Matrix, hour: str) -> float:
    """Minutes of all series; a window that has both its ends holds one more than an hour."""
    return sum(min(value, MINUTES) for value in _values(matrix, hour))


def _take_counter(
    client: httpx.Client, name: str, first: int, last: int, counters: dict[str, dict[Series, float]]
) -> None:
    for labels, values in _matrix(client, f"increase({name}[1h])", first, last):
        for hour, value in values.items():
            if value > 0:
                key = series(name, labels)
                row = counters.setdefault(hour, {})
                row[key] = row.get(key, 0.0) + value


def _matrix(client: httpx.Client, query: str, first: int, last: int) -> Matrix:
    """Each series' labels (without the scrape's own) and its values by the hour that they are of."""
    # A value at the end of an hour is about that hour.
    url = without_secrets(str(client.base_url))
    asked = {"query": query, "start": str(first + HOUR_S), "end": str(last), "step": str(HOUR_S)}
    try:
        answer = client.get("/api/v1/query_range", params=asked)
        tree = answer.json()
        if tree.get("status") != "success":
            raise ReportError(f"{url}: {tree.get('error', answer.status_code)} (query {query})")
        found = []
        for row in tree["data"]["result"]:
            labels = {k: v for k, v in row["metric"].items() if k not in ("__name__", "job", "instance")}
            values = {hour_of(float(time_s) - HOUR_S): float(value) for time_s, value in row["values"]}
            found.append((labels, values))
        return found
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{url}: no answer of Prometheus ({error}); check the URL") from None


def _row(hour: str, counters: Mapping[Series, float], gauges: Mapping[str, Any], minutes: _Minutes) -> HourRow:
    def by(name: str, *wanted: str) -> dict[tuple[str, ...], float]:
        """The largest of all machines'."""
        found: dict[tuple[str, ...], float] = {}
        for labels, values in gauges[name]:
            if hour in values:
                key = tuple(labels.get(label, "") for label in wanted)
                found[key] = max(values[hour], found.get(key, 0.0))
        return found

    def by_source(name: str) -> dict[str, float]:
        return {source: value for (source,), value in by(name, "source").items()}

    grid = [labels for labels, values in minutes.known if hour in values]
    pue = [values[hour] for _, values in gauges["jouleserve_power_usage_effectiveness_ratio"] if hour in values]
    joules, cpu_seconds = (by(f"jouleserve_compile_{what}", "model", "variant") for what in ("joules", "cpu_seconds"))
    return HourRow(
        hour=hour,
        seconds=minutes.metered_s(hour),
        counters=counters,
        intensity=minutes.intensity(hour),
        intensity_kinds=minutes.kinds(hour),
        pue=max(pue, default=1.0),
        uncertainty=by_source("jouleserve_energy_relative_uncertainty_ratio"),
        dynamic_uncertainty=by_source("jouleserve_dynamic_relative_uncertainty_ratio"),
        zone=grid[-1].get("zone", "") if grid else "",
        provider=grid[-1].get("provider", "") if grid else "",
        compiled=tuple(
            {
                "model": model,
                "variant": variant,
                "joules": joules.get((model, variant)),
                "cpu_seconds": cpu_seconds.get((model, variant)),
                "source": None,
            }
            for model, variant in sorted({*joules, *cpu_seconds})
        ),
        machines=minutes.mean_machines(hour),
    )
