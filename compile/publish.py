"""Turns a run's outcome into a manifest and publishes it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compile.line import Candidate, Outcome
from compile.passes.base import Artifact, Context
from compile.passes.export import FILE
from compile.pipeline import RUN_KEY
from compile.points import cascade_candidates, choose_points
from compile.recipe import REFERENCE, Recipe
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
    evidence = _all_evidence(outcome, files)
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
        candidates=_candidates(outcome, points, left_out),
    )


def _candidates(
    outcome: Outcome, points: tuple[OperatingPoint, ...], left_out: Mapping[str, str]
) -> tuple[dict[str, Any], ...]:
    made = []
    for candidate in outcome.candidates:
        reason = candidate.reason or left_out.get(candidate.name)
        described: dict[str, Any] = {"name": candidate.name, "published": candidate.reason is None}
        described["lineage"] = [f"{a.pass_name}:{a.key[:12]}" for a in candidate.lineage]
        described["passes"] = _costs(candidate, outcome)
        if reason is not None:
            described["reason"] = reason
            described["known"] = _known(candidate)
        made.append(described)
    calibrated = {} if outcome.calibrated is None else outcome.calibrated.meta
    return (*made, *cascade_candidates(calibrated, {point.name for point in points}, left_out))


def _costs(candidate: Candidate, outcome: Outcome) -> list[dict[str, Any]]:
    """What each pass behind a candidate cost; equal keys are the same work, shared with other candidates."""
    judged = [candidate.fp32_evaluation, candidate.evaluation]
    joint = [outcome.measured, outcome.calibrated, outcome.answered] if candidate.reason is None else []
    once = {artifact.key: artifact for artifact in (*candidate.lineage, *judged, *joint) if artifact is not None}
    return [
        {"pass": a.pass_name, "key": key[:12], "cpu_seconds": a.spent.cpu_seconds, "joules": a.spent.joules}
        for key, a in once.items()
    ]


def _known(candidate: Candidate) -> dict[str, Any]:
    """What had been measured of a candidate before it was left out."""
    made: dict[str, Any] = {"compile_cpu_seconds": candidate.spent.cpu_seconds}
    if candidate.spent.joules is not None:
        made["compile_joules"] = candidate.spent.joules
    for artifact in candidate.lineage:
        made |= {
            name: artifact.meta[name] for name in ("layers", "parameters", "macs_per_text") if name in artifact.meta
        }
    if candidate.graph is not None:
        made["size_bytes"] = (candidate.graph.path / FILE).stat().st_size
    if candidate.fp32_evaluation is not None:
        made["fp32_accuracy"] = candidate.fp32_evaluation.meta["accuracy"]
    return made


def _all_evidence(outcome: Outcome, files: Path) -> dict[str, Evidence]:
    reference_joules = outcome.measured.meta["variants"][REFERENCE]["joules_per_1k"]
    return {c.name: _evidence(c, outcome, reference_joules, files) for c in outcome.passed}


def _evidence(candidate: Candidate, outcome: Outcome, reference_joules: float | None, files: Path) -> Evidence:
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
        size_bytes=(files / f"{candidate.name}.onnx").stat().st_size,
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
