"""The grid's and the dial's state, as the controller last wrote it to `grid.json` in the run folder."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FILE_NAME = "grid.json"
STALE_AFTER_SECONDS = 7200.0
_MAX_GRAMS_PER_KWH = 10_000.0
_MAX_LABEL_CHARS = 64
_MAX_COUNTS = 32
STEPS = {"live": 0, "static": 0, "replay": 0, "cached": 1, "forecast": 2, "hour_of_week_mean": 3}
REFUSALS = (
    "Unreachable",
    "ProviderFailed",
    "Throttled",
    "Refused",
    "Malformed",
    "Implausible",
    "Stale",
    "FutureDated",
    "WrongZone",
    "NoData",
)
"""Names of the errors in `energy.grid.signal`, each a series from the beginning: a rate does not see the first of a
series that begins with it."""


@dataclass(frozen=True, slots=True)
class GridState:
    """One state of the file; fields that it leaves out or gives as null are None or empty."""

    grams_per_kwh: float | None
    """Carbon intensity now; None if unknown."""
    age_s: float | None
    """Age of the reading when the file was written."""
    written_s: float
    """When the controller wrote the file, seconds since the epoch; a copy of it on another machine is as old."""
    zone: str
    provider: str
    kind: str
    dial_point: str
    policy: str
    reason: str
    switches_total: int
    refused: Mapping[str, int] = field(default_factory=dict)
    """Looks at the grid that gave no reading of the provider's, by the name of the error."""
    measure: str = "average"

    dial_level: float | None = None
    """Where the dial stands: 0 full quality, 1 cheapest."""
    budget_spent_ratio: float | None = None
    """Share of the period's budget that is spent; None under other policies."""
    budget_elapsed_ratio: float | None = None
    """Share of the period that has passed."""

    @property
    def step(self) -> int:
        """The ladder's step in force: 0 the provider's own reading to 4, nothing."""
        return STEPS.get(self.kind, 4)


def parse_grid_state(data: bytes, modified_s: float) -> GridState:
    """Parse the file, which was last modified at `modified_s`: it was written no later than that, whatever it says.
    Raises ValueError naming the field."""
    tree = json.loads(data)
    if not isinstance(tree, dict):
        raise ValueError("grid.json: not a map")
    switches = tree.get("switches_total") or 0
    if not isinstance(switches, int) or switches < 0:
        raise ValueError(f"switches_total: {switches!r} is no count")
    written_s = _number(tree, "written_s", math.inf)
    budget = tree.get("budget") or {}
    if not isinstance(budget, dict):
        raise ValueError("budget: not a map")
    return GridState(
        grams_per_kwh=_number(tree, "grams_per_kwh", _MAX_GRAMS_PER_KWH),
        age_s=_number(tree, "age_s", math.inf),
        written_s=modified_s if written_s is None else min(written_s, modified_s),
        zone=_label(tree, "zone"),
        provider=_label(tree, "provider"),
        kind=_label(tree, "kind"),
        dial_point=_label(tree, "dial_point"),
        policy=_label(tree, "policy"),
        reason=_label(tree, "reason"),
        switches_total=switches,
        refused=_counts(tree, "refused"),
        measure=_label(tree, "measure") or "average",
        dial_level=_number(tree, "dial_level", 1.0),
        budget_spent_ratio=_number(budget, "spent_ratio", math.inf),
        budget_elapsed_ratio=_number(budget, "elapsed_ratio", 1.0),
    )


def _number(tree: Mapping[str, Any], name: str, most: float) -> float | None:
    value = tree.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{name}: {value!r}; 0 to {most} or null is expected")
    return float(value)


def _counts(tree: Mapping[str, Any], name: str) -> dict[str, int]:
    counts = tree.get(name) or {}
    if not isinstance(counts, dict) or len(counts) > _MAX_COUNTS:
        raise ValueError(f"{name}: not a map of at most {_MAX_COUNTS} counts")
    for count in counts.values():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(f"{name}: {count!r} is no count")
    return {str(key)[:_MAX_LABEL_CHARS]: count for key, count in counts.items()}


def _label(tree: Mapping[str, Any], name: str) -> str:
    value = tree.get(name)
    return "" if value is None else str(value)[:_MAX_LABEL_CHARS]


class GridFile:
    """Follows the file; reads it again only when it was replaced."""

    def __init__(self, run_dir: Path, clock_s: Callable[[], float] = time.time) -> None:
        """Nothing is read before `state`."""
        self._path = str(run_dir / FILE_NAME)
        self._clock_s = clock_s
        self._seen: tuple[int, int] | None = None
        self._state: GridState | None = None

    def state(self) -> GridState | None:
        """The state in force; None without a file. A file that cannot be understood leaves the state as it was."""
        try:
            stat = os.stat(self._path)
        except OSError:
            self._seen = self._state = None
            return None
        if (stat.st_mtime_ns, stat.st_ino) != self._seen:
            self._seen = (stat.st_mtime_ns, stat.st_ino)
            try:
                self._state = parse_grid_state(Path(self._path).read_bytes(), stat.st_mtime)
            except (OSError, ValueError) as error:
                log.warning("%s ignored: %s", self._path, error)
        return self._state

    @property
    def kind(self) -> str:
        """How the intensity was known when the file was last looked at; empty without one."""
        return "" if self._state is None else self._state.kind

    def age_s(self) -> float | None:
        """Age of the reading in force now; None if there is none."""
        state = self._state
        if state is None or state.age_s is None:
            return None
        return state.age_s + max(self._clock_s() - state.written_s, 0.0)

    def grams_per_kwh(self) -> float | None:
        """Average intensity in force now; None without one, if it is marginal, or if nobody renewed the file for two
        hours."""
        state = self.state()
        if state is None or self._clock_s() - state.written_s > STALE_AFTER_SECONDS or state.measure != "average":
            return None
        return state.grams_per_kwh
