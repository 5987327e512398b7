"""A day of made-up hourly totals, as the node process writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COMPILED = [
    {
        "model": "intents",
        "variant": "lite",
        "joules": 7200.0,
        "cpu_seconds": 3000.0,
        "source": "estimated",
        "relative_uncertainty": 0.5,
    }
]
DESCRIBED = {
    "version": 1,
    "release": "1",
    "pue": 1.5,
    "sources": ["rapl"],
    "uncertainty": {"rapl": 0.05},
    "dynamic_uncertainty": {"rapl": 0.04},
    "zone": "DE",
    "provider": "replay",
    "cpus": 2,
    "memory_gib": 116.0,
    "compiled": COMPILED,
}
OWNER = {"model": "intents", "class": "standard", "source": "rapl"}


def counters(joules: float, grams_per_kwh: float) -> list[list[Any]]:
    """An hour in which the machine drew `joules`: 40 % idling, 30 % requests, 20 % overhead, 10 % others."""
    rows = [
        ("jouleserve_energy_joules_total", {"domain": "package", "device": "package-0", "source": "rapl"}, joules),
        ("jouleserve_energy_joules_total", {"domain": "core", "device": "package-0", "source": "rapl"}, joules / 2),
        ("jouleserve_idle_joules_total", {"domain": "package", "device": "package-0", "source": "rapl"}, 0.4 * joules),
        ("jouleserve_unattributed_joules_total", {"reason": "overhead"}, 0.2 * joules),
        ("jouleserve_unattributed_joules_total", {"reason": "other_processes"}, 0.1 * joules),
        ("jouleserve_energy_avoided_joules_total", {"reason": "fallback"}, 0.1 * joules),
        ("jouleserve_energy_avoided_joules_total", {"reason": "cache"}, 0.2 * joules),
    ]
    for variant, outcome, share in (("full", "ok", 0.2), ("lite", "ok", 0.09), ("lite", "error", 0.01)):
        labels = {**OWNER, "variant": variant, "outcome": outcome}
        rows.append(("jouleserve_attributed_joules_total", labels, share * joules))
        rows.append(("jouleserve_loaded_joules_total", labels, 1.5 * 3 * share * joules))
        asked = {"model": "intents", "variant": variant, "point": variant, "class": "standard", "outcome": outcome}
        rows.append(("jouleserve_requests_total", asked, round(1000 * share)))
    for scope, share in (("attributed", 0.3), ("idle", 0.4), ("overhead", 0.2), ("other", 0.1)):
        grams = share * joules / 3.6e6 * 1.5 * grams_per_kwh
        rows.append(("jouleserve_carbon_grams_total", {"scope": scope, "model": "", "variant": ""}, grams))
    return [list(row) for row in rows]


def line(number: int, hour: int, joules: float, grams: float | None) -> dict[str, Any]:
    """The line of an hour of 2026-11-28."""
    known = {"seconds": 3600.0, "gram_seconds": 3600.0 * grams, "kinds": {"live": 3600.0}} if grams else None
    grid = known or {"seconds": 0.0, "gram_seconds": 0.0, "kinds": {}}
    return {
        **DESCRIBED,
        "number": number,
        "hour": f"2026-11-28T{hour:02}:00:00Z",
        "seconds": 3600.0,
        "grid": grid,
        "counters": counters(joules, grams or 0.0),
    }


def write_hours(folder: Path, *lines: dict[str, Any]) -> Path:
    """The folder of totals with these lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "2026-11.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder
