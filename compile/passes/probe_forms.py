"""Find the graph form that is cheapest at the data's own lengths."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compile.checkpoint import load
from compile.errors import of_the_machine
from compile.graph.forms import export_form
from compile.graph.quantization import quantize_int8
from compile.graph.sessions import open_session
from compile.measure.cpu import cheapest_width_cpu_seconds
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.versions import VERSIONS

_SLICE_LAYERS = 2
_TEXTS = 240
_EQUAL = 1.03
"""Costs this close are noise: a run that is repeated, or killed here, must come to the same form."""


class ProbeForms(Pass):
    """teacher -> the forms ranked by CPU time in int8, cheapest first. Gate: at least one form works.

    A slice of the teacher's first layers is measured: layers repeat, so the form that wins there wins everywhere.
    """

    name = "probe_forms"
    version = VERSIONS["probe_forms"]

    def __init__(
        self, forms: tuple[str, ...], opset: int, reduce_range: bool, repeats: int, cpu_model: str, batch_rows: int
    ) -> None:
        self.forms, self.opset, self.reduce_range = forms, opset, reduce_range
        self.repeats, self.cpu_model, self.batch_rows = repeats, cpu_model, batch_rows

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {
            "forms": list(self.forms),
            "opset": self.opset,
            "reduce_range": self.reduce_range,
            "repeats": self.repeats,
            "cpu": self.cpu_model,
            "batch_rows": self.batch_rows,
        }

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Export, quantize and time every form."""
        if len(self.forms) == 1:
            return {"ranking": list(self.forms), "cpu_seconds_per_1k": {}, "failed": {}}
        failed: dict[str, str] = {}
        sessions = {}
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            for at, form in enumerate(self.forms):
                context.progress(at / len(self.forms), f"form {form}")
                model = load(inputs["teacher"].path)
                model.keep_layers(range(min(_SLICE_LAYERS, model.layer_count)))
                fp32, int8 = Path(scratch) / f"{form}.onnx", Path(scratch) / f"{form}.int8.onnx"
                try:
                    export_form(model, form, context.dataset.pair, self.opset, fp32)
                    quantize_int8(fp32, int8, [], self.reduce_range, embeddings=False)
                    sessions[form] = open_session(int8)
                except Exception as error:  # an exporter may fail in any way; the other forms remain
                    if of_the_machine(error):
                        raise
                    failed[form] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            texts = context.validation.every(len(context.validation) // _TEXTS)
            spent = cheapest_width_cpu_seconds(sessions, texts, context.pad, self.batch_rows, self.repeats)
        return {"ranking": ranked(spent), "cpu_seconds_per_1k": spent, "failed": failed}

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """Without a form there is nothing to publish."""
        return [Gate("graph forms that work", len(meta["ranking"]), 1, detail=str(meta["failed"]))]


def ranked(spent: Mapping[str, float]) -> list[str]:
    """Forms by cost, cheapest first; the first one named of those that cost as little as the cheapest comes first."""
    by_cost = sorted(spent, key=lambda form: spent[form])
    first = next((form for form in spent if spent[form] <= _EQUAL * spent[by_cost[0]]), None)
    return sorted(by_cost, key=lambda form: form != first)
