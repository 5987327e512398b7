"""Test accuracy of a graph in batches as served, against the fp32 graph it came from and against the teacher.

Of real labels accuracy is R2, as everywhere (see `compile.judging`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compile.artifact import Artifact
from compile.divergence import Floats, agreement
from compile.graph.sessions import open_session
from compile.judging import judge
from compile.measure.accuracy import graph_logits
from compile.measure.scores import scores
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.export import FILE
from compile.passes.versions import VERSIONS

PREDICTIONS = "predictions.npz"


class Evaluate(Pass):
    """graph [, fp32, teacher: earlier evaluations] -> test predictions and accuracy.

    Gates, where the inputs are given: agreement with `fp32` and accuracy relative to `teacher`. Nothing is chosen
    here: these are the first and only looks at the test split.
    """

    name = "evaluate"
    version = VERSIONS["evaluate"]

    def __init__(self, batch_rows: int, min_agreement: float, min_relative_accuracy: float) -> None:
        self.batch_rows = batch_rows
        self.min_agreement, self.min_relative_accuracy = min_agreement, min_relative_accuracy

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {
            "batch_rows": self.batch_rows,
            "min_agreement": self.min_agreement,
            "min_relative_accuracy": self.min_relative_accuracy,
        }

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Answer every test text."""
        session = open_session(inputs["graph"].path / FILE, context.threads)
        logits = graph_logits(session, context.test, context.pad, self.batch_rows)
        np.savez(out / PREDICTIONS, logits=logits)
        labels = context.dataset.test.labels
        teacher = _logits(inputs["teacher"]) if "teacher" in inputs else logits
        judged = judge(labels, logits, teacher, context.seed)
        found = {name: one.model_dump() for name, one in scores(labels, logits).items()}
        meta: dict[str, Any] = {**asdict(judged), "rows": len(labels), "scores": found}
        if "fp32" in inputs:
            meta["agreement"] = agreement(_logits(inputs["fp32"]), logits)
        return meta

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """The recipe's floors."""
        gates = []
        if "fp32" in inputs:
            gates.append(
                Gate("int8 agreement, test", meta["agreement"], self.min_agreement, field="quantize.min_agreement")
            )
        if "teacher" in inputs:
            name = "R2" if context.dataset.regression else "accuracy"
            detail = f"{name} {meta['accuracy']:.4f}, {meta['relative_accuracy']:.4f} of the teacher's"
            least, limit = meta["relative_accuracy_lower"], self.min_relative_accuracy
            gate = Gate(f"lower bound of relative {name}", least, limit, detail=detail, field="min_relative_accuracy")
            gates.append(gate)
        return gates


def _logits(evaluated: Artifact) -> Floats:
    found: Floats = np.load(evaluated.path / PREDICTIONS)["logits"]
    return found
