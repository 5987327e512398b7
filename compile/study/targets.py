"""What the project's own recipes are asked to reach, and what they did. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compile.report.document import Table

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Target:
    """At least `kept` of the fp32 teacher's accuracy for at most `cost` of its joules, on the test file."""

    kept: float
    cost: float
    stretch: float
    """What would be better still, in the same share."""


TARGETS = (Target(0.99, 0.25, 0.12), Target(0.95, 0.10, 0.05))
LEAST_TEACHER: Mapping[str, float] = {"sst2": 0.90, "banking77": 0.92}
"""A weak teacher flatters every relative figure: its test accuracy must reach this before anything is compared."""


def against_targets(recipes: Sequence[Mapping[str, Any]]) -> Table:
    """Each recipe's teacher, and the cheapest published operating point that keeps enough for each target.

    Twice: by what the test texts gave, and by its lower bound. Among many points the cheapest that passes owes
    something to chance; the bound is the sterner judge. `recipes` are figures as `compile.report.figures` gives them.
    """
    columns = ("recipe", "asked", "judged by", "point", "of the teacher (at least)", "joules", "verdict")
    return Table(columns, tuple(row for recipe in recipes for row in _rows(recipe)), words=4)


def _rows(recipe: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    name, whole = recipe["family"], recipe["variants"]["fp32"]
    least = LEAST_TEACHER.get(name)
    if least is not None:
        met = "met" if whole["accuracy"] >= least else "missed"
        yield (name, f"teacher ≥ {least:.0%}", "figure", "fp32", f"accuracy {whole['accuracy']:.2%}", "100%", met)
    for target in TARGETS:
        asked = f"≥ {target.kept:.0%} at ≤ {target.cost:.0%} (stretch {target.stretch:.0%})"
        for judge, field in (("figure", "relative_accuracy"), ("lower bound", "relative_accuracy_lower")):
            yield (name, asked, judge, *_verdict(target, field, recipe["points"], whole["cpu_seconds_per_1k"]))


def _verdict(target: Target, field: str, points: Sequence[Mapping[str, Any]], whole: float) -> tuple[str, ...]:
    """Point, what it keeps, its share of the joules, verdict."""
    able = [one for one in points if (one.get(field) or 0.0) >= target.kept - _ROUNDING]
    if not able:
        return ("none", "–", "–", "missed")
    best = min(able, key=lambda one: one["cpu_seconds_per_1k"])
    share = best["cpu_seconds_per_1k"] / whole
    verdict = "stretch met" if share <= target.stretch else "met" if share <= target.cost else "missed"
    lower = best.get("relative_accuracy_lower")
    kept = f"{best['relative_accuracy']:.1%}" + ("" if lower is None else f" ({lower:.1%})")
    return (best["name"], kept, f"{share:.1%}", verdict)
