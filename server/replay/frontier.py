"""What a policy would give at other thresholds, and which of them gives a wanted quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ValidationError

from models.manifest import OperatingPoint
from server.config_problems import problems_of
from server.replay.course import Course
from server.replay.errors import ReplayError
from server.replay.figures import Figures, dial_costs, figures_of
from server.replay.simulate import Faults, simulate
from server.shaping_settings import ShapingSettings

SWEEP_SHARES = tuple(round(0.1 * step, 1) for step in range(11))
SWEEP_QUANTILES = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
BAND = 0.9
"""`clean_below` of a sweep's thresholds, as a share of `dirty_above`."""
CLOSE = 0.005
"""A share at full quality so near to the wanted one is good enough: a replay says no more of the year to come."""
MOST_TRIES = 6
KEPT_WITHIN = 0.1
"""A try lies so far inside the two that it lies between, as a share of their distance: each narrows it down."""


class _Sections(BaseModel):
    """So that what is wrong is named as it is in the settings file."""

    shaping: ShapingSettings


Trial = tuple[dict[str, float], Figures]
"""What is varied, and what came of it."""


def sweep(
    course: Course,
    points: Sequence[OperatingPoint],
    base: ShapingSettings,
    faults: Faults | None = None,
    want: float | None = None,
) -> list[Trial]:
    """The frontier of `base`'s policy from cleanest to best quality; with `want` (share at full quality) further
    settings are tried around it, until one comes within half a point. Raises ReplayError for a policy that has no
    threshold."""
    values, changes_of = _varied(course, base)
    costs = dial_costs(points, base)

    def tried(value: float) -> Trial:
        changes = changes_of(value)
        return changes, figures_of(course, simulate(course, points, changed(base, **changes), faults), costs)

    found = {value: tried(value) for value in values}
    if want is not None:
        for _ in range(MOST_TRIES):
            value = _between({value: figures.full_share for value, (_, figures) in found.items()}, want)
            if value is None:
                break
            found[value] = tried(value)
    return sorted(found.values(), key=lambda trial: trial[1].full_share)


def _varied(course: Course, base: ShapingSettings) -> tuple[list[float], Callable[[float], dict[str, float]]]:
    """The values of the one thing that is varied, rising with the quality, and the settings that each stands for."""
    if base.policy == "percentile":
        return list(SWEEP_SHARES), lambda share: {"full_share": share}
    if base.policy == "threshold":
        above = {_rounded(float(grams)) for grams in np.nanquantile(course.grams_per_kwh, SWEEP_QUANTILES)}
        return sorted(grams for grams in above if grams > 0), lambda grams: {
            "dirty_above_grams_per_kwh": grams,
            "clean_below_grams_per_kwh": _rounded(grams * BAND),
        }
    raise ReplayError(f"--sweep: policy '{base.policy}' has no threshold to vary; take percentile or threshold")


def _between(shares: Mapping[float, float], want: float) -> float | None:
    """What to try next: between the two values whose shares enclose the wanted one. None if it is reached, or no
    value lies between."""
    if min(abs(share - want) for share in shares.values()) <= CLOSE:
        return None
    values = sorted(shares)
    for low, high in pairwise(values):
        if shares[low] < want < shares[high]:
            part = (want - shares[low]) / (shares[high] - shares[low])
            value = _rounded(low + (high - low) * min(max(part, KEPT_WITHIN), 1 - KEPT_WITHIN))
            return None if value in shares else value
    return None


def _rounded(value: float) -> float:
    """Three digits, so that a grid of a few grams keeps its thresholds apart."""
    return float(f"{value:.3g}")


def changed(base: ShapingSettings, **changes: object) -> ShapingSettings:
    """The settings with `changes`, validated. Raises ReplayError."""
    try:
        return _Sections.model_validate({"shaping": base.model_dump() | changes}).shaping
    except ValidationError as error:
        raise ReplayError("; ".join(problems_of(error, _Sections, {}))) from None


def settings_for(frontier: Sequence[Trial], base: ShapingSettings, want: float) -> str:
    """The line that names the settings whose quality comes closest to the wanted one."""
    changes, figures = min(frontier, key=lambda trial: abs(trial[1].full_share - want))
    words = " ".join(f"shaping.{key}={value:g}" for key, value in changes.items())
    gave = f"gave {figures.full_share:.1%}"
    if abs(figures.full_share - want) > CLOSE:
        gave += "; nothing tried came closer"
    return f"for {want:.0%} at full quality: jouleserve tune shaping.policy={base.policy} {words} ({gave})"
