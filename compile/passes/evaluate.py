"""Test accuracy of a graph in batches as served, against the fp32 graph it came from and against the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compile.graph.sessions import open_session
from compile.measure.accuracy import graph_logits, wilson_lower
from compile.measure.scores import scores
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.export import FILE

PREDICTIONS = "predictions.npz"


class Evaluate(Pass):
    """graph [, fp32, teacher: earlier evaluations] -> test predictions and accuracy.

    Gates, where the inputs are given: agreement with `fp32` and accuracy relative to `teacher`. Nothing is chosen
    here: these are the first and only looks at the test split.
    """

    name = "evaluate"
    version = 3

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
        predicted = logits.argmax(-1)
        np.savez(out / PREDICTIONS, logits=logits, predicted=predicted)
        right = int((predicted == context.dataset.test.labels).sum())
        rows = len(predicted)
        meta: dict[str, Any] = {"accuracy": right / rows, "accuracy_lower": wilson_lower(right, rows), "rows": rows}
        meta["scores"] = {name: one.model_dump() for name, one in scores(context.dataset.test.labels, logits).items()}
        if "fp32" in inputs:
            reference = np.load(inputs["fp32"].path / PREDICTIONS)["predicted"]
            meta["agreement"] = float((reference == predicted).mean())
        teacher = inputs["teacher"].meta["accuracy"] if "teacher" in inputs else meta["accuracy"]
        meta["relative_accuracy"] = meta["accuracy"] / teacher if teacher else 0.0
        return meta

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """The recipe's floors."""
        gates = []
        if "fp32" in inputs:
            gates.append(
                Gate("int8 agreement, test", meta["agreement"], self.min_agreement, field="quantize.min_agreement")
            )
        if "teacher" in inputs:
            detail = f"accuracy {meta['accuracy']:.4f}"
            share = meta["relative_accuracy"]
            limit = self.min_relative_accuracy
            gates.append(Gate("relative accuracy", share, limit, detail=detail, field="min_relative_accuracy"))
        return gates
