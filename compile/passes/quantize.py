"""Dynamic int8 of an exported graph, keeping the most sensitive products in fp32 where agreement asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compile.graph.quantization import by_sensitivity, head_nodes, quantize_int8
from compile.graph.sessions import fresh_process_difference, open_session
from compile.graph.smoothing import smooth
from compile.measure.accuracy import graph_logits
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.export import FILE, MAX_DIFFERENCE, masked_row_infinities, sample_inputs
from compile.recipe import QuantizeSpec

SMOOTHED = "smoothed.onnx"
_SENSITIVITY_TEXTS = 16
_SMOOTHING_TEXTS = 192


class Quantize(Pass):
    """graph -> int8 model.onnx.

    The head stays in fp32 (it is tiny). Remedies, until `target_agreement` on validation texts: smooth the activations,
    then keep the most sensitive product in fp32, then the next, at most `max_fp32_matmuls`. The best trial is kept, all
    are recorded. Gates: agreement on validation texts, smoothing changes nothing in fp32, finite logits, the same
    answers in a fresh process.
    """

    name = "quantize"
    version = 5

    def __init__(self, spec: QuantizeSpec, reduce_range: bool, batch_rows: int) -> None:
        self.spec, self.reduce_range, self.batch_rows = spec, reduce_range, batch_rows

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {**self.spec.model_dump(), "reduce_range": self.reduce_range, "batch_rows": self.batch_rows}

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Quantize, compare, remedy."""
        source = inputs["graph"].path / FILE
        expected = self._validation_logits(source, context).argmax(-1)
        head = head_nodes(source)
        trials: list[dict[str, Any]] = []
        chosen = 0
        for prepared, kept, about in self._remedies(source, head, out, context):
            target = out / "trial.onnx"
            quantize_int8(prepared, target, [*head, *kept], self.reduce_range, self.spec.embeddings)
            agreement = float((self._validation_logits(target, context).argmax(-1) == expected).mean())
            trials.append({**about, "fp32_products": list(kept), "validation_agreement": agreement})
            context.progress(len(trials) / (2 + self.spec.max_fp32_matmuls), f"agreement {agreement:.4f}")
            if len(trials) == 1 or agreement > trials[chosen]["validation_agreement"]:
                chosen = len(trials) - 1
                target.replace(out / FILE)
            if agreement >= self.spec.target_agreement:
                break
        (out / "trial.onnx").unlink(missing_ok=True)
        (out / SMOOTHED).unlink(missing_ok=True)
        return {
            **{name: inputs["graph"].meta[name] for name in ("form", "layers", "parameters", "macs_per_text")},
            **trials[chosen],
            "trials": trials,
            "smoothing_difference": max(trial.get("smoothing_difference", 0.0) for trial in trials),
        }

    def _remedies(
        self, source: Path, head: list[str], out: Path, context: Context
    ) -> Iterator[tuple[Path, list[str], dict[str, Any]]]:
        """Ever more careful ways: (graph to quantize, products kept in fp32, what was done)."""
        yield source, [], {"smoothed_products": []}
        smoothed = out / SMOOTHED
        rows = list(range(min(len(context.train), _SMOOTHING_TEXTS)))
        batches = [rows[at : at + context.batch_rows] for at in range(0, len(rows), context.batch_rows)]
        done = smooth(source, smoothed, context.train, batches, context.pad)
        sample = sample_inputs(5, 16, context, np.random.default_rng(3))
        exact, moved = (open_session(path).run(["logits"], sample)[0] for path in (source, smoothed))
        about = {
            "smoothed_products": [one.product for one in done],
            "smoothing_difference": float(np.abs(exact - moved).max()),
        }
        yield smoothed, [], about
        count = len(context.validation)
        texts = list(range(0, count, max(1, count // _SENSITIVITY_TEXTS)))[:_SENSITIVITY_TEXTS]
        ranked = by_sensitivity(smoothed, context.validation, texts, context.pad)
        names = [name for name, _ in ranked if name not in head]
        for extra in range(1, min(self.spec.max_fp32_matmuls, len(names)) + 1):
            yield smoothed, names[:extra], about

    def _validation_logits(self, path: Path, context: Context) -> NDArray[np.float32]:
        return graph_logits(open_session(path, context.threads), context.validation, context.pad, self.batch_rows)

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """Agreement where it was tuned (the test texts follow in `Evaluate`), and that the file stands alone."""
        sample = sample_inputs(5, 16, context, np.random.default_rng(1))
        detail = f"with {len(meta['fp32_products'])} products in fp32"
        return [
            Gate("int8 agreement, validation", meta["validation_agreement"], self.spec.min_agreement, detail=detail),
            Gate("difference that smoothing makes in fp32", meta["smoothing_difference"], MAX_DIFFERENCE, True),
            Gate("logits that are not finite", masked_row_infinities(out / FILE, context), 0, True),
            Gate("difference in a fresh process", fresh_process_difference(out / FILE, sample, out), 1e-5, True),
        ]
