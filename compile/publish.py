"""Turns a run's outcome into a manifest and publishes it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compile.line import REFERENCE, Candidate, Outcome
from compile.passes.base import Artifact, Context
from compile.passes.export import FILE
from compile.pipeline import RUN_KEY
from compile.recipe import Recipe
from compile.text import load_tokenizer
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

_LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")


def publish(
    recipe: Recipe, run_key: str, outcome: Outcome, context: Context, cpu: TargetCpu, position_limit: int, store: Store
) -> Version:
    """Write the manifest of a run and publish it with its files; the version appears whole or not at all."""
    store.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=store.root) as name:
        staging = Path(name)
        load_tokenizer(context.base.path / "tokenizer.json").save(str(staging / "tokenizer.json"))
        for candidate in outcome.passed:
            _place(_graph(candidate).path / FILE, staging / f"{candidate.name}.onnx")
        manifest = build_manifest(recipe, run_key, outcome, context, cpu, position_limit, staging)
        return store.publish(manifest, staging)


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
    points = _points(variants)
    return Manifest(
        family=recipe.family,
        created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        pair=context.dataset.pair,
        labels=context.dataset.labels,
        max_tokens=position_limit,
        inputs=_input_names(context.dataset.pair),
        pad_id=context.pad,
        tokenizer=file_ref(files, "tokenizer.json"),
        variants=variants,
        points=points,
        teacher_accuracy=evidence[REFERENCE].accuracy,
        target_cpu=cpu,
        dataset_sha256=context.dataset.digest(),
        recipe={RUN_KEY: run_key, "settings": settings, "data_notes": list(context.dataset.notes)},
        libraries={name: importlib.metadata.version(name) for name in _LIBRARIES},
        candidates=_candidates(outcome, points),
    )


def _input_names(pair: bool) -> tuple[str, ...]:
    return ("input_ids", "attention_mask", "token_type_ids") if pair else ("input_ids", "attention_mask")


def _points(variants: tuple[Variant, ...]) -> tuple[OperatingPoint, ...]:
    """Every variant but the reference that costs less than all better ones before it."""
    points: list[OperatingPoint] = []
    for variant in variants:
        shown = variant.evidence
        if variant.reference or (points and shown.cpu_seconds_per_1k >= points[-1].cpu_seconds_per_1k):
            continue
        points.append(
            OperatingPoint(
                name=variant.name,
                variant=variant.name,
                accuracy=shown.accuracy,
                accuracy_lower=shown.accuracy_lower,
                relative_accuracy=shown.relative_accuracy,
                cpu_seconds_per_1k=shown.cpu_seconds_per_1k,
                joules_per_1k=shown.joules_per_1k,
            )
        )
    return tuple(points)


def _candidates(outcome: Outcome, points: tuple[OperatingPoint, ...]) -> tuple[dict[str, Any], ...]:
    chosen = {point.name for point in points} | {REFERENCE}
    made = []
    for candidate in outcome.candidates:
        reason = candidate.reason
        if reason is None and candidate.name not in chosen:
            reason = "measured no cheaper than the variant before it"
        described: dict[str, Any] = {"name": candidate.name, "published": candidate.reason is None}
        described["lineage"] = [f"{a.pass_name}:{a.key[:12]}" for a in candidate.lineage]
        if reason is not None:
            described["reason"] = reason
        made.append(described)
    return tuple(made)


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
        test_rows=evaluation.meta["rows"],
        agreement_with_fp32=evaluation.meta.get("agreement"),
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
    if candidate.fp32_evaluation is not None:
        notes["fp32_accuracy"] = candidate.fp32_evaluation.meta["accuracy"]
    return Variant(
        name=candidate.name,
        precision="fp32" if reference else "int8",
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
