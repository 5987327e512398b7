"""Reads a node process over HTTP, for commands, the demo and tests."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(url: str, timeout_s: float = 5.0) -> Samples:
    """All samples of `http://host:port/metrics`, by name and label pairs. Raises OSError."""
    with urlopen(Request(url, headers={"Accept": "text/plain"}), timeout=timeout_s) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): float(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of all samples called `name` that carry these labels (`class` as `class_`); 0 without any."""
    wanted = {(key.rstrip("_"), value) for key, value in labels.items()}
    return sum(value for (found, pairs), value in samples.items() if found == name and wanted <= pairs)


def conservation(base_url: str, since: str | None = None, timeout_s: float = 5.0) -> dict[str, Any]:
    """The books side by side, in joules; `since` is the `mark` of an earlier answer. Raises OSError."""
    url = f"{base_url}/conservation" + (f"?since={quote(since)}" if since else "")
    with urlopen(url, timeout=timeout_s) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
