"""Turns a run's outcome into a manifest and publishes it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compile.artifact import Artifact, Spent
from compile.line import Candidate, Outcome
from compile.passes.base import Context
from compile.passes.export import FILE
from compile.points import cascade_candidates, choose_points
from compile.recipe import REFERENCE, Recipe
from compile.report.figures import UNMEASURED
from compile.run_key import RUN_KEY
from compile.text import load_tokenizer
from compile.versions import library_versions
from models.manifest import (
    CostModel,
    Evidence,
    LatencyCell,
    Manifest,
    OperatingPoint,
    TargetCpu,
    Variant,
)
from models.store import Store, Version, file_ref

_KNOWN = ("layers", "parameters", "macs_per_text")


def publish(
    recipe: Recipe,
    run_key: str,
    outcome: Outcome,
    context: Context,
    cpu: TargetCpu,
    position_limit: int,
    store: Store,
    staging: Path,
) -> Version:
    """Write the manifest of a run and publish it with its files; the version appears whole or not at all.

    `staging` is a folder of the run's own; what a killed run left in it is thrown away.
    """
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        load_tokenizer(context.base.tokenizer).save(str(staging / "tokenizer.json"))
        for candidate in outcome.passed:
            _place(_graph(candidate).path / FILE, staging / f"{candidate.name}.onnx")
        manifest = build_manifest(recipe, run_key, outcome, context, cpu, position_limit, staging)
        return store.publish(manifest, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def build_manifest(
    recipe: Recipe,
    run_key: str,
    outcome: Outcome,
    context: Context,
    cpu: TargetCpu,
    position_limit: int,
    files: Path,
) -> Manifest:
    """Describe everything that passed, cheapest operating point last; what failed stays among the candidates."""
    evidence = _all_evidence(outcome)
    settings = recipe.model_dump(mode="json")
    variants = tuple(_variant(candidate, outcome, evidence[candidate.name], files) for candidate in outcome.passed)
    calibrated = {} if outcome.calibrated is None else outcome.calibrated.meta
    answered = {} if outcome.answered is None else outcome.answered.meta
    points, left_out = choose_points(variants, calibrated, answered)
    return Manifest(
        family=recipe.family,
        created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        task="text-regression" if context.dataset.regression else "text-classification",
        pair=context.dataset.pair,
        labels=context.dataset.labels,
        max_tokens=position_limit,
        inputs=context.input_names,
        pad_id=context.pad,
        tokenizer=file_ref(files, "tokenizer.json"),
        variants=variants,
        points=points,
        teacher_accuracy=evidence[REFERENCE].accuracy,
        target_cpu=cpu,
        dataset_sha256=context.dataset.digest(),
        recipe={RUN_KEY: run_key, "settings": settings, "data_notes": list(context.dataset.notes)},
        libraries=library_versions(),
        candidates=_candidates(outcome, evidence, points, left_out),
    )


def _candidates(
    outcome: Outcome,
    evidence: Mapping[str, Evidence],
    points: tuple[OperatingPoint, ...],
    left_out: Mapping[str, str],
) -> tuple[dict[str, Any], ...]:
    made = []
    for candidate in outcome.candidates:
        reason = candidate.reason or left_out.get(candidate.name)
        described: dict[str, Any] = {"name": candidate.name, "published": candidate.reason is None}
        described["lineage"] = [f"{a.pass_name}:{a.key[:12]}" for a in candidate.lineage]
        described["passes"] = _costs(candidate, outcome)
        if reason is not None:
            described["reason"] = reason
        if candidate.reason is not None:
            described |= _of_failed(candidate, evidence.get(candidate.name))
        made.append(described)
    calibrated = {} if outcome.calibrated is None else outcome.calibrated.meta
    return (*made, *cascade_candidates(calibrated, {point.name for point in points}, left_out))


def _costs(candidate: Candidate, outcome: Outcome) -> list[dict[str, Any]]:
    """What each pass behind a candidate cost; equal keys are the same work, shared with other candidates."""
    judged = [candidate.fp32_evaluation, candidate.evaluation]
    joint: list[Artifact | None] = [outcome.measured] if candidate.graph is not None else []
    joint += [outcome.calibrated, outcome.answered] if candidate.reason is None else []
    once = {artifact.key: artifact for artifact in (*candidate.lineage, *judged, *joint) if artifact is not None}
    return [{"pass": a.pass_name, "key": key[:12], **_cost(a.spent)} for key, a in once.items()]


def _cost(spent: Spent) -> dict[str, Any]:
    why = {} if spent.unmeasured is None else {"unmeasured": spent.unmeasured}
    return {"cpu_seconds": spent.cpu_seconds, "joules": spent.joules, **why}


def _of_failed(candidate: Candidate, evidence: Evidence | None) -> dict[str, Any]:
    """What is known of a candidate that missed a gate: all that is of a variant, if it came to a graph."""
    if evidence is None:
        return {"known": _known(candidate)}
    graph = _graph(candidate)
    made = {"layers": graph.meta["layers"], "precision": graph.meta["precision"], "graph_form": graph.meta["form"]}
    if candidate.fp32_evaluation is not None:
        made["fp32_accuracy"] = candidate.fp32_evaluation.meta["accuracy"]
    if candidate.spent.unmeasured is not None:
        made[UNMEASURED] = candidate.spent.unmeasured
    return {**made, "evidence": evidence.model_dump(mode="json", exclude_none=True)}


def _known(candidate: Candidate) -> dict[str, Any]:
    """What had been measured of a candidate that came to no graph."""
    made: dict[str, Any] = {"compile_cpu_seconds": candidate.spent.cpu_seconds}
    if candidate.spent.joules is not None:
        made["compile_joules"] = candidate.spent.joules
    for artifact in candidate.lineage:
        made |= {name: artifact.meta[name] for name in _KNOWN if name in artifact.meta}
    if candidate.fp32_evaluation is not None:
        made["fp32_accuracy"] = candidate.fp32_evaluation.meta["accuracy"]
    return made


def _all_evidence(outcome: Outcome) -> dict[str, Evidence]:
    """The evidence of what passed, and of what failed as far as it came to a graph that answers."""
    reference_joules = outcome.measured.meta["variants"][REFERENCE]["joules_per_1k"]
    made = {c.name: _evidence(c, outcome, reference_joules) for c in outcome.passed}
    for candidate in outcome.candidates:
        if candidate.reason is not None and candidate.graph is not None and candidate.evaluation is not None:
            with suppress(ValidationError):  # answers that are no numbers
                made[candidate.name] = _evidence(candidate, outcome, reference_joules)
    return made


def _evidence(candidate: Candidate, outcome: Outcome, reference_joules: float | None) -> Evidence:
    graph, evaluation = _graph(candidate), candidate.evaluation
    assert evaluation is not None
    measured = outcome.measured.meta["variants"][candidate.name]
    spent = candidate.spent
    return Evidence(
        accuracy=evaluation.meta["accuracy"],
        accuracy_lower=evaluation.meta["accuracy_lower"],
        relative_accuracy=evaluation.meta["relative_accuracy"],
        relative_accuracy_lower=evaluation.meta.get("relative_accuracy_lower"),
        test_rows=evaluation.meta["rows"],
        agreement_with_fp32=evaluation.meta.get("agreement"),
        **evaluation.meta.get("scores", {}),
        parameters=graph.meta["parameters"],
        macs_per_text=graph.meta["macs_per_text"],
        size_bytes=(graph.path / FILE).stat().st_size,
        cpu_seconds_per_1k=measured["cpu_seconds_per_1k"],
        joules_per_1k=measured["joules_per_1k"],
        energy_source=outcome.measured.meta["energy_source"],
        energy_relative_uncertainty=outcome.measured.meta["energy_relative_uncertainty"],
        latency=tuple(LatencyCell.model_validate(cell) for cell in measured["latency"]),
        compile_cpu_seconds=spent.cpu_seconds,
        compile_joules=spent.joules,
        break_even_requests=break_even(spent.joules, reference_joules, measured["joules_per_1k"]),
    )


def break_even(
    compile_joules: float | None, reference_joules_per_1k: float | None, joules_per_1k: float | None
) -> int | None:
    """Requests after which compiling has paid for itself against serving the fp32 teacher; None if it never does."""
    if compile_joules is None or reference_joules_per_1k is None or joules_per_1k is None:
        return None
    saved_per_request = (reference_joules_per_1k - joules_per_1k) / 1000
    return None if saved_per_request <= 0 else -int(-compile_joules // saved_per_request)


def _variant(candidate: Candidate, outcome: Outcome, evidence: Evidence, files: Path) -> Variant:
    graph = _graph(candidate)
    reference = candidate.name == REFERENCE
    notes: dict[str, Any] = {"form_cpu_seconds_per_1k_of_2_layers": dict(outcome.form_costs)}
    if not reference:
        notes["fp32_products"] = graph.meta["fp32_products"]
        notes["smoothed_products"] = graph.meta["smoothed_products"]
        notes["validation_agreement"] = graph.meta["validation_agreement"]
        notes["quantization_trials"] = graph.meta["trials"]
    if outcome.calibrated is not None and not reference:
        notes["calibration"] = outcome.calibrated.meta["temperatures"][candidate.name]
    if candidate.fp32_evaluation is not None:
        notes["fp32_accuracy"] = candidate.fp32_evaluation.meta["accuracy"]
    if candidate.spent.unmeasured is not None:
        notes[UNMEASURED] = candidate.spent.unmeasured
    return Variant(
        name=candidate.name,
        precision="fp32" if reference else graph.meta["precision"],
        layers=graph.meta["layers"],
        graph_form=graph.meta["form"],
        model=file_ref(files, f"{candidate.name}.onnx"),
        cost=CostModel.model_validate(outcome.measured.meta["variants"][candidate.name]["cost"]),
        evidence=evidence,
        reference=reference,
        lineage=tuple(artifact.pass_name for artifact in candidate.lineage),
        notes=notes,
    )


def _graph(candidate: Candidate) -> Artifact:
    assert candidate.graph is not None
    return candidate.graph


def _place(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
