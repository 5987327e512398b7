"""Figures of a manifest that a report shows, as plain data; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import models
from compile.cascade import dominated
from models.manifest import Evidence, Manifest, OperatingPoint, Variant

Kind = Literal["variant", "cascade", "reference"]
_ROUNDING = 1e-9
UNMEASURED = "compile_joules_unknown"
"""Name, among a variant's notes, of why the joules of compiling it are not known."""


@dataclass(frozen=True)
class Way:
    """A way to answer with what it costs: joules per 1,000 texts, CPU-seconds where joules are unmeasured."""

    name: str
    kind: Kind
    accuracy: float
    accuracy_lower: float
    cost: float


@dataclass(frozen=True)
class PassCost:
    """What all runs of one kind of pass cost, equal work counted once."""

    pass_name: str
    runs: int
    cpu_seconds: float
    joules: float | None


@dataclass(frozen=True)
class Judged:
    """A variant, or a candidate that missed a gate, with its evidence."""

    name: str
    left_out: bool
    layers: int
    precision: str
    graph_form: str
    evidence: Evidence
    unmeasured: str | None
    """Why the joules of compiling it are not known."""


def judged(manifest: Manifest) -> list[Judged]:
    """All that has evidence, variants first. Versions of earlier releases have none of what was left out."""
    made = [
        Judged(v.name, False, v.layers, v.precision, v.graph_form, v.evidence, v.notes.get(UNMEASURED))
        for v in manifest.variants
    ]
    for c in manifest.candidates:
        if "evidence" in c:
            shape = (c["layers"], c["precision"], c["graph_form"])
            evidence = Evidence.model_validate(c["evidence"])
            made.append(Judged(c["name"], True, *shape, evidence, c.get(UNMEASURED)))
    return made


def baseline(manifest: Manifest) -> Variant:
    """What relative figures are relative to: the fp32 teacher, or the first variant where it was not kept."""
    return next((v for v in manifest.variants if v.reference), manifest.variants[0])


def in_joules(manifest: Manifest) -> bool:
    """Whether every variant's and point's joules were measured, so that they can be compared."""
    shown: Iterable[Evidence | OperatingPoint] = [*(v.evidence for v in manifest.variants), *manifest.points]
    return all(one.joules_per_1k is not None for one in shown)


def ways(manifest: Manifest) -> tuple[Way, ...]:
    """Every variant and every cascade, all judged on the test texts."""
    joules = in_joules(manifest)

    def way(name: str, kind: Kind, of: Evidence | OperatingPoint) -> Way:
        cost = of.joules_per_1k if joules and of.joules_per_1k is not None else of.cpu_seconds_per_1k
        return Way(name, kind, of.accuracy, of.accuracy_lower, cost)

    single = [way(v.name, "reference" if v.reference else "variant", v.evidence) for v in manifest.variants]
    cascades = [way(point.name, "cascade", point) for point in manifest.points if point.cascade is not None]
    return (*single, *cascades)


def pareto_front(of: Sequence[Way]) -> list[Way]:
    """Ways to serve that no other one beats in both accuracy and cost, cheapest first."""
    served = [way for way in of if way.kind != "reference"]
    beaten = dominated([way.accuracy for way in served], [way.cost for way in served])
    return sorted((way for way, by in zip(served, beaten, strict=True) if by is None), key=lambda way: way.cost)


def cheapest_keeping(share: float, manifest: Manifest) -> OperatingPoint | None:
    """The cheapest operating point with at least `share` of the teacher's accuracy; None if none has."""
    able = [point for point in manifest.points if point.relative_accuracy >= share - _ROUNDING]
    return min(able, key=lambda point: point.cpu_seconds_per_1k, default=None)


def size_bytes(manifest: Manifest, point: OperatingPoint) -> int:
    """Bytes of the model files that a point needs."""
    names = {point.variant} if point.cascade is None else {point.variant, point.cascade.first}
    return sum(manifest.variant(name).evidence.size_bytes for name in names)


def pass_costs(manifest: Manifest) -> tuple[PassCost, ...]:
    """What each kind of pass cost over all candidates, dearest first; empty where the version does not say."""
    once = {made["key"]: made for candidate in manifest.candidates for made in candidate.get("passes", ())}
    kinds: dict[str, list[dict[str, Any]]] = {}
    for made in once.values():
        kinds.setdefault(made["pass"], []).append(made)
    costs = [_summed(name, runs) for name, runs in kinds.items()]
    return tuple(sorted(costs, key=lambda cost: (-cost.cpu_seconds, cost.pass_name)))


def _summed(pass_name: str, runs: Sequence[dict[str, Any]]) -> PassCost:
    joules = [run["joules"] for run in runs]
    measured = None if any(value is None for value in joules) else sum(joules)
    return PassCost(pass_name, len(runs), sum(run["cpu_seconds"] for run in runs), measured)


def compact(value: float) -> str:
    """A figure in words: whole where it is 100 or more, else with three digits; never a power of ten in it above 1."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def figures(manifest: Manifest) -> dict[str, Any]:
    """The report's figures as plain data, small enough to keep beside the code."""
    return {
        "family": manifest.family,
        "command": _command(manifest.family),
        "created_utc": manifest.created_utc,
        "cpu": manifest.target_cpu.model,
        "dataset_sha256": manifest.dataset_sha256,
        "data_notes": manifest.recipe.get("data_notes", []),
        "libraries": manifest.libraries,
        "variants": {one.name: _evidence_figures(one) for one in judged(manifest) if not one.left_out},
        "points": [point.model_dump(mode="json", exclude_none=True) for point in manifest.points],
        "failed": {c["name"]: c["reason"] for c in manifest.candidates if "reason" in c and c.get("kind") != "cascade"},
        "failed_evidence": {one.name: _evidence_figures(one) for one in judged(manifest) if one.left_out},
    }


def _evidence_figures(of: Judged) -> dict[str, Any]:
    return {
        "layers": of.layers,
        "precision": of.precision,
        "graph_form": of.graph_form,
        **of.evidence.model_dump(mode="json", exclude={"latency"}),
        "macs_per_parameter": of.evidence.macs_per_parameter,
    }


def _command(family: str) -> str | None:
    """The command that compiles a family whose recipe comes with the project."""
    known = (Path(models.__file__).parent / "recipes" / f"{family}.yaml").is_file()
    return f"jouleserve-compile run models/recipes/{family}.yaml" if known else None
