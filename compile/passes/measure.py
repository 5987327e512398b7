"""CPU time and joules of every variant, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compile.graph.sessions import open_session
from compile.measure.cpu import fit_cost, latency_cells, padding_share, served_cpu_seconds
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.export import FILE
from compile.passes.versions import VERSIONS
from compile.recipe import MeasureSpec
from energy.span import measure_process

_CELL_REPEATS = 2
_PADDING_REPEATS = 7


class Measure(Pass):
    """graphs by variant name -> per variant CPU-seconds and joules per 1,000 texts, latency cells, cost model."""

    name = "measure"
    version = VERSIONS["measure"]

    def __init__(self, spec: MeasureSpec, max_tokens: int, cpu_model: str) -> None:
        self.spec, self.max_tokens, self.cpu_model = spec, max_tokens, cpu_model

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {**self.spec.model_dump(), "max_tokens": self.max_tokens, "cpu": self.cpu_model}

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Time the graphs, taking turns."""
        sessions = {name: open_session(artifact.path / FILE) for name, artifact in inputs.items()}
        texts = context.test.every(-(-len(context.test) // self.spec.texts))
        with measure_process() as span:
            spent = served_cpu_seconds(sessions, texts, context.pad, self.spec.batch_rows, self.spec.repeats)
        joules = span.dynamic_joules
        per_cpu_second = None if joules is None or span.cpu_seconds <= 0 else joules / span.cpu_seconds
        names = context.input_names
        vocabulary = 1 + max(max(row) for row in context.train.ids)
        variants: dict[str, Any] = {}
        for at, (name, session) in enumerate(sessions.items()):
            context.progress(at / len(sessions), f"batch shapes of {name}")
            cells = latency_cells(session, names, vocabulary, self.max_tokens, _CELL_REPEATS)
            padded = padding_share(session, names, vocabulary, _PADDING_REPEATS)
            variants[name] = {
                "cpu_seconds_per_1k": spent[name],
                "joules_per_1k": None if per_cpu_second is None else spent[name] * per_cpu_second,
                "latency": [cell.model_dump() for cell in cells],
                "cost": {**fit_cost(cells).model_dump(), "padding_share": padded},
            }
        return {
            "variants": variants,
            "texts": len(texts),
            "energy_source": span.source,
            "energy_relative_uncertainty": span.relative_uncertainty,
            "joules_per_cpu_second": per_cpu_second,
        }

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """Every variant has a positive cost."""
        least = min(v["cpu_seconds_per_1k"] for v in meta["variants"].values())
        return [Gate("least CPU-seconds per 1,000 texts", least, 1e-9)]
