"""A machine's own power curve: watts at some loads, as a reference meter showed them, with straight lines between.

It replaces the coefficients of the CPU family in the estimated source. Loads are shares of all processors, 0 to 1;
watts are of whatever the reference covers, normally the whole machine at its plug.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 1
_IDLE_AT_MOST, _FULL_AT_LEAST = 0.1, 0.9
_LOW_LOAD = 0.25


class CalibrationError(ValueError):
    """A calibration is not one; the message names the field and the remedy."""


@dataclass(frozen=True, slots=True)
class PowerPoint:
    """What the reference showed at a load."""

    load: float
    watts: float


@dataclass(frozen=True)
class Calibration:
    """Points by rising load, from idle to full."""

    points: tuple[PowerPoint, ...]
    reference: str
    """What the watts come from, in the user's words: a plug meter, a BMC, a data sheet."""
    date: str
    reference_uncertainty: float = 0.02
    """Half width of the reference's own error band, as a share."""

    def __post_init__(self) -> None:
        """Check. Raises CalibrationError."""
        loads, watts = [p.load for p in self.points], [p.watts for p in self.points]
        if not all(math.isfinite(value) for value in (*loads, *watts)):
            raise CalibrationError("points: not all are numbers; give watts and loads as numbers")
        if len(loads) < 2 or loads != sorted(set(loads)):
            raise CalibrationError("points: give at least idle and full load, each load once, rising")
        if not (0 <= loads[0] <= _IDLE_AT_MOST and _FULL_AT_LEAST <= loads[-1] <= 1):
            raise CalibrationError(
                f"points: from load {loads[0]:g} to {loads[-1]:g}; measure from idle (at most {_IDLE_AT_MOST:g}) to"
                f" full (at least {_FULL_AT_LEAST:g}), with nothing else running"
            )
        if watts[0] <= 0 or watts != sorted(watts) or watts[0] == watts[-1]:
            raise CalibrationError(f"points: watts {watts} do not rise from above 0; read the reference again")
        if not 0 <= self.reference_uncertainty < 1:
            raise CalibrationError(f"reference_uncertainty: {self.reference_uncertainty}; give a share from 0 to 1")

    @property
    def idle_watts(self) -> float:
        """At no load: the first point, or where the line through the first two meets load 0."""
        return self.watts(0.0)

    def watts(self, load: float) -> float:
        """Power at a load; straight lines between the points, and on from the outer ones, never below 0."""
        points = self.points
        at = min(max(bisect_left([point.load for point in points], load), 1), len(points) - 1)
        low, high = points[at - 1], points[at]
        slope = (high.watts - low.watts) / (high.load - low.load)
        return max(low.watts + slope * (min(max(load, 0.0), 1.0) - low.load), 0.0)

    def relative_uncertainty(self, table: Mapping[str, float]) -> float:
        """Half width of the error band of figures made with it; `table` is that of `coefficients.yaml`.

        Machines rise steeply from their idle: without a point at a low load, that is where a curve is off most.
        """
        low = any(_IDLE_AT_MOST / 2 <= point.load <= _LOW_LOAD for point in self.points)
        own = table["calibrated"] if low else table["calibrated_without_low_load"]
        return math.hypot(own, self.reference_uncertainty)

    def to_json(self) -> dict[str, Any]:
        """As plain maps."""
        return {
            "version": VERSION,
            "points": [{"load": point.load, "watts": point.watts} for point in self.points],
            "reference": self.reference,
            "reference_uncertainty": self.reference_uncertainty,
            "date": self.date,
        }

    @classmethod
    def of(cls, watts_by_load: Mapping[float, float] | Sequence[tuple[float, float]], **described: Any) -> Calibration:
        """From pairs of load and watts in any order. Raises CalibrationError."""
        pairs = watts_by_load.items() if isinstance(watts_by_load, Mapping) else watts_by_load
        return cls(tuple(PowerPoint(load, watts) for load, watts in sorted(pairs)), **described)

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read a file that `jouleserve calibrate` wrote. Raises CalibrationError."""
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            if tree["version"] != VERSION:
                raise CalibrationError(f"{path}: version {tree['version']!r}, not {VERSION}; calibrate again")
            return cls.of(
                [(float(point["load"]), float(point["watts"])) for point in tree["points"]],
                reference=str(tree["reference"]),
                date=str(tree["date"]),
                reference_uncertainty=float(tree["reference_uncertainty"]),
            )
        except CalibrationError:
            raise
        except OSError as error:
            raise CalibrationError(f"{path}: {error.strerror}; run `jouleserve calibrate` to write it") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CalibrationError(f"{path}: not a calibration ({error!r}); run `jouleserve calibrate` again") from None
