"""The operating points of a version: which variants and cascades are published, and why the others are not.

What the pass `calibrate` made known is plain data, as its artifact keeps it (`compile.passes.calibrate`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from compile.cascade import dominated
from models.manifest import Cascade, OperatingPoint, Variant


def choose_points(
    variants: tuple[Variant, ...], calibrated: Mapping[str, Any], answered: Mapping[str, Any]
) -> tuple[tuple[OperatingPoint, ...], dict[str, str]]:
    """Full quality (the first that is no reference), then the front, cheapest last; and why others are left out.

    `calibrated` and `answered`: what the passes `calibrate` and `answer` made known, or nothing. `calibrate` chose on
    validation texts; points that another one beats on the test texts that they are published with are left out here.
    """
    left_out: dict[str, str] = dict(calibrated.get("left_out", {}))
    singles = [_single(v, answered) for v in variants if not v.reference]
    full = singles[0]
    offered = [point for point in singles[1:] if point.name not in left_out] + _cascades(calibrated, answered)
    able = [full]
    for point in sorted(offered, key=lambda p: -p.cpu_seconds_per_1k):
        if point.cpu_seconds_per_1k >= full.cpu_seconds_per_1k:
            left_out[point.name] = f"measured no cheaper than '{full.name}'"
        else:
            able.append(point)
    beaten = dominated([p.accuracy_lower for p in able], [p.cpu_seconds_per_1k for p in able])
    for point, by in zip(able[1:], beaten[1:], strict=True):
        if by is not None:
            left_out[point.name] = f"'{able[by].name}' is no dearer and no worse on test texts"
    return tuple(point for point in able if point.name not in left_out), left_out


def _single(variant: Variant, answered: Mapping[str, Any]) -> OperatingPoint:
    shown = variant.evidence
    return OperatingPoint(
        name=variant.name,
        variant=variant.name,
        accuracy=shown.accuracy,
        accuracy_lower=shown.accuracy_lower,
        relative_accuracy=shown.relative_accuracy,
        relative_accuracy_lower=shown.relative_accuracy_lower,
        cpu_seconds_per_1k=shown.cpu_seconds_per_1k,
        joules_per_1k=shown.joules_per_1k,
        tokenizing_cpu_seconds_per_1k=answered.get("tokenizing_cpu_seconds_per_1k"),
        alone_cpu_seconds_per_1k=answered.get("alone_cpu_seconds_per_1k", {}).get(variant.name),
    )


def _cascades(calibrated: Mapping[str, Any], answered: Mapping[str, Any]) -> list[OperatingPoint]:
    judged: Mapping[str, Any] = calibrated.get("judged", {})
    made = []
    for rated in calibrated.get("rated", ()):
        if rated["name"] not in judged:
            continue
        shown = {name: value for name, value in judged[rated["name"]].items() if name in OperatingPoint.model_fields}
        cascade = Cascade.model_validate({name: rated[name] for name in Cascade.model_fields})
        if answered:
            shown |= _costs_of_answering(rated, judged[rated["name"]]["share_of_second_cost"], answered)
        made.append(OperatingPoint(name=rated["name"], variant=rated["variant"], cascade=cascade, **shown))
    return made


def _costs_of_answering(rated: Mapping[str, Any], share: float, answered: Mapping[str, Any]) -> dict[str, float]:
    """Of a cascade, which tokenizes once; `share`: what escalates costs the second variant, of what all texts would."""
    tokenizing: float = answered["tokenizing_cpu_seconds_per_1k"]
    alone: Mapping[str, float] = answered["alone_cpu_seconds_per_1k"]
    both = alone[rated["first"]] + share * (alone[rated["variant"]] - tokenizing)
    return {"tokenizing_cpu_seconds_per_1k": tokenizing, "alone_cpu_seconds_per_1k": both}


def cascade_candidates(
    calibrated: Mapping[str, Any], published: Collection[str], left_out: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Every cascade that was rated: its figures on validation texts, on test texts where it was judged, or why not."""
    for rated in calibrated.get("rated", ()):
        if rated["first"] is None:
            continue
        described = {**rated, "kind": "cascade", "published": rated["name"] in published}
        if rated["name"] in calibrated["judged"]:
            described["test"] = dict(calibrated["judged"][rated["name"]])
        if rated["name"] in left_out:
            described["reason"] = left_out[rated["name"]]
        yield described
