"""Fewer bits in an exported graph, keeping the most sensitive products in fp32 where the answers ask for it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compile.divergence import agreement
from compile.graph.quantization import (
    by_sensitivity,
    calibrate,
    head_nodes,
    products_in_fewer_bits,
    quantize_4bit,
    quantize_int8,
    quantize_static,
    to_fp16,
)
from compile.graph.sessions import fresh_process_difference, open_session
from compile.graph.smoothing import smooth
from compile.measure.accuracy import Floats, graph_logits
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.export import FILE, MAX_DIFFERENCE, masked_row_infinities, sample_inputs
from compile.passes.versions import VERSIONS
from compile.specs.quantize import QuantizeSpec
from compile.training import quality

SMOOTHED = "smoothed.onnx"
_PRECISIONS = {"dynamic": "int8", "static": "int8", "weight_only_4bit": "int4", "fp16": "fp16", "none": "fp32"}
_ROUNDS_ACTIVATIONS = ("dynamic", "static")
_SENSITIVITY_TEXTS = 16
_CALIBRATION_TOKENS = 4096
"""Every layer's activations of so many tokens are held in memory at once: 0.6 GB for a model of BERT's base size."""
_FIELD = "quantize.min_agreement"
_EXACT = 1e-5
_SAME_HALF = 1e-3
"""Half precision is emulated here: kernels may be fused differently in another process."""


@dataclass(frozen=True)
class _Way:
    """One trial: the graph to quantize, products kept in fp32, what was done to the graph."""

    prepared: Path
    kept: list[str]
    about: dict[str, Any]


class Quantize(Pass):
    """graph [, teacher: the fine-tuned model] -> model.onnx in fewer bits (see `QuantizeSpec`).

    The head stays in fp32 (it is tiny). Remedies, until validation texts agree with fp32 as well as `target_agreement`
    asks and keep `min_relative_accuracy` of the teacher's accuracy (or of the fp32 graph's own, where that is less or
    no teacher is given): smooth the activations where they are rounded, then keep the most sensitive product in fp32,
    then the next, at most `max_fp32_matmuls`. The best trial is kept, all are recorded. Gates: agreement on validation
    texts, smoothing changes nothing in fp32, finite logits, the same answers in a fresh process.
    """

    name = "quantize"
    version = VERSIONS["quantize"]

    def __init__(
        self, spec: QuantizeSpec, seed: int, reduce_range: bool, batch_rows: int, min_relative_accuracy: float = 0.0
    ) -> None:
        self.spec, self.seed, self.reduce_range, self.batch_rows = spec, seed, reduce_range, batch_rows
        self.min_relative_accuracy = min_relative_accuracy

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {
            **self.spec.model_dump(),
            "seed": self.seed,
            "reduce_range": self.reduce_range,
            "batch_rows": self.batch_rows,
            "min_relative_accuracy": self.min_relative_accuracy,
        }

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Quantize, compare, remedy."""
        source = inputs["graph"].path / FILE
        expected = self._logits(source, context)
        floor = self._floor(inputs, expected, context)
        head = head_nodes(source)
        trials: list[dict[str, Any]] = []
        chosen, best = 0, (-1, 0.0, 0.0)
        for way in self._remedies(source, head, out, context):
            target = out / "trial.onnx"
            done = self._write(way.prepared, target, [*head, *way.kept], context)
            made = self._logits(target, context)
            agreed = agreement(expected, made)
            found = quality(made, context.dataset.validation.labels)
            (reached,) = found.values()
            about = {"fp32_products": way.kept, "quantized_products": len(done)}
            trials.append({**way.about, **about, "validation_agreement": agreed, **found})
            context.progress(len(trials) / (2 + self.spec.max_fp32_matmuls), f"agreement {agreed:.4f}")
            # Past the target, more agreement is worth nothing: of equals the earlier, cheaper trial stays.
            met = int(agreed >= self.spec.min_agreement) + int(reached >= floor)
            worth = (met, min(agreed, self.spec.target_agreement), min(reached, floor))
            if worth > best:
                chosen, best = len(trials) - 1, worth
                target.replace(out / FILE)
            if agreed >= self.spec.target_agreement and reached >= floor:
                break
        (out / "trial.onnx").unlink(missing_ok=True)
        (out / SMOOTHED).unlink(missing_ok=True)
        return {
            **{name: inputs["graph"].meta[name] for name in ("form", "layers", "parameters", "macs_per_text")},
            **trials[chosen],
            "precision": _PRECISIONS[self.spec.method],
            "method": self.spec.method,
            "validation_floor": floor,
            "trials": trials,
            "smoothing_difference": max(trial.get("smoothing_difference", 0.0) for trial in trials),
        }

    def _floor(self, inputs: Inputs, expected: Floats, context: Context) -> float:
        """Least validation accuracy (R2, if labels are real numbers); never above what the fp32 graph reaches, since no
        product in fp32 brings more."""
        ((name, own),) = quality(expected, context.dataset.validation.labels).items()
        teacher = float(inputs["teacher"].meta[name]) if "teacher" in inputs else own
        return min(own, teacher * self.min_relative_accuracy)

    def _write(self, source: Path, target: Path, kept: list[str], context: Context) -> list[str]:
        spec = self.spec
        match spec.method:
            case "dynamic":
                return quantize_int8(source, target, kept, self.reduce_range, spec.embeddings)
            case "static":
                percentile = spec.calibration == "percentile"
                ranges = calibrate(source, context.train, self._calibration_batches(context), context.pad, percentile)
                return quantize_static(source, target, kept, self.reduce_range, spec.embeddings, ranges)
            case "weight_only_4bit":
                return quantize_4bit(source, target, kept, spec.embeddings)
            case "fp16":
                return to_fp16(source, target, kept)
            case "none":
                target.write_bytes(source.read_bytes())
                return []

    def _remedies(self, source: Path, head: list[str], out: Path, context: Context) -> Iterator[_Way]:
        """Ever more careful ways."""
        about: dict[str, Any] = {"smoothed_products": []}
        yield _Way(source, [], about)
        if self.spec.method in _ROUNDS_ACTIVATIONS:
            smoothed = out / SMOOTHED
            about = self._smooth(source, smoothed, context)
            source = smoothed
            yield _Way(source, [], about)
        count = len(context.validation)
        texts = list(range(0, count, max(1, count // _SENSITIVITY_TEXTS)))[:_SENSITIVITY_TEXTS]
        only_weights = self.spec.method == "weight_only_4bit"
        ranked = by_sensitivity(source, context.validation, texts, context.pad, only_weights)
        names = [name for name, _ in ranked if name not in head]
        for extra in range(1, min(self.spec.max_fp32_matmuls, len(names)) + 1):
            yield _Way(source, names[:extra], about)

    def _smooth(self, source: Path, target: Path, context: Context) -> dict[str, Any]:
        done = smooth(source, target, context.train, self._calibration_batches(context), context.pad)
        sample = sample_inputs(5, 16, context, np.random.default_rng(3))
        exact, moved = (open_session(path).run(["logits"], sample)[0] for path in (source, target))
        return {
            "smoothed_products": [one.product for one in done],
            "smoothing_difference": float(np.abs(exact - moved).max()),
        }

    def _calibration_batches(self, context: Context) -> list[list[int]]:
        """Batches of random training texts (files may be sorted by label): as many as the spec and memory allow."""
        rows: list[int] = []
        tokens, total = 0, len(context.train)
        for row in random.Random(f"calibration/{self.seed}").sample(range(total), total)[: self.spec.calibration_texts]:
            tokens += len(context.train.ids[row])
            if rows and tokens > _CALIBRATION_TOKENS:
                break
            rows.append(row)
        return [rows[at : at + context.batch_rows] for at in range(0, len(rows), context.batch_rows)]

    def _logits(self, path: Path, context: Context) -> Floats:
        return graph_logits(open_session(path, context.threads), context.validation, context.pad, self.batch_rows)

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """Agreement where it was tuned (the test texts follow in `Evaluate`), and that the file stands alone."""
        sample = sample_inputs(5, 16, context, np.random.default_rng(1))
        detail = f"with {len(meta['fp32_products'])} products in fp32"
        unit = context.answer_unit
        same = unit * (_SAME_HALF if meta["precision"] == "fp16" else _EXACT)
        agreed = f"{meta['precision']} agreement, validation"
        least = int(self.spec.method != "none" and meta["layers"] > 0)
        return [
            Gate(agreed, meta["validation_agreement"], self.spec.min_agreement, detail=detail, field=_FIELD),
            Gate("products in fewer bits", products_in_fewer_bits(out / FILE), max(least, meta["quantized_products"])),
            Gate("difference that smoothing makes in fp32", meta["smoothing_difference"], MAX_DIFFERENCE * unit, True),
            Gate("logits that are not finite", masked_row_infinities(out / FILE, context), 0, True),
            Gate("difference in a fresh process", fresh_process_difference(out / FILE, sample, out), same, True),
        ]
