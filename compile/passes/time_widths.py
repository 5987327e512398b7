"""Measure what a layer costs with fewer heads and fewer feed-forward units."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.checkpoint import load as load_model
from compile.graph.forms import export_form
from compile.graph.quantization import quantize_int8
from compile.graph.sessions import open_session
from compile.measure.cpu import served_cpu_seconds
from compile.measure.widths import WidthTable, measured_counts, table_of
from compile.model import Classifier
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.versions import VERSIONS
from compile.surgery import Widths, cut_to, widths_of
from compile.text import Encoded

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_SLICE_LAYERS = 2
_TEXTS = 96


@dataclass(frozen=True)
class Int8Export:
    """How graphs that are only timed are made."""

    form: str
    opset: int
    reduce_range: bool


class TimeWidths(Pass):
    """teacher (uncut), forms (see `ProbeForms`) -> a table of CPU time by width.

    Slices of the teacher's first layers are cut, exported in the cheapest form, quantized to int8 and timed, taking
    turns, on validation texts in batches as served. Gate: a layer at full width costs something.
    """

    name = "time_widths"
    version = VERSIONS["time_widths"]

    def __init__(self, opset: int, reduce_range: bool, repeats: int, cpu_model: str, batch_rows: int) -> None:
        self.opset, self.reduce_range, self.repeats = opset, reduce_range, repeats
        self.cpu_model, self.batch_rows = cpu_model, batch_rows

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {
            "opset": self.opset,
            "reduce_range": self.reduce_range,
            "repeats": self.repeats,
            "cpu": self.cpu_model,
            "batch_rows": self.batch_rows,
        }

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Export, quantize and time every slice."""
        folder = inputs["teacher"].path
        export = Int8Export(str(inputs["forms"].meta["ranking"][0]), self.opset, self.reduce_range)
        have = widths_of(load_model(folder))
        layers = min(_SLICE_LAYERS, len(have.heads))
        full = Widths(have.heads[:1], have.units[:1])
        head_counts, unit_counts = measured_counts(full.heads[0], full.units[0])
        slices = _slices(full, layers, head_counts, unit_counts)
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            sessions = {}
            for at, widths in enumerate(slices):
                context.progress(0.8 * at / len(slices), f"slice {at + 1}/{len(slices)}")
                model = load_model(folder)
                model.keep_layers(range(len(widths.heads)))
                cut_to(model, widths)
                sessions[str(at)] = int8_session(model, export, context, Path(scratch) / str(at))
            spent = served_cpu_seconds(sessions, sample(context), context.pad, context.batch_rows, self.repeats)
        seconds = {widths: spent[str(at)] for at, widths in enumerate(slices)}
        table = table_of(seconds, full, layers, head_counts, unit_counts)
        return {"table": table.to_plain(), "export": asdict(export)}

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """The table must be of use."""
        return [
            Gate("CPU-seconds per 1,000 texts of a layer", WidthTable.from_plain(meta["table"]).layer_seconds, 1e-9)
        ]


def int8_session(model: Classifier, export: Int8Export, context: Context, folder: Path) -> InferenceSession:
    """The int8 graph of a model, opened; its files go into `folder`, which is made."""
    folder.mkdir()
    export_form(model, export.form, context.dataset.pair, export.opset, folder / "fp32.onnx")
    quantize_int8(folder / "fp32.onnx", folder / "int8.onnx", [], export.reduce_range, embeddings=False)
    return open_session(folder / "int8.onnx")


def sample(context: Context, texts: int = _TEXTS) -> Encoded:
    """Evenly drawn validation texts, about `texts` of them."""
    return context.validation.every(len(context.validation) // texts)


def _slices(full: Widths, layers: int, head_counts: tuple[int, ...], unit_counts: tuple[int, ...]) -> list[Widths]:
    few_heads = [Widths((n,) * layers, full.units * layers) for n in head_counts]
    few_units = [Widths(full.heads * layers, (n,) * layers) for n in unit_counts]
    whole = Widths(full.heads * layers, full.units * layers)
    return list(dict.fromkeys(itertools.chain([full, whole], few_heads, few_units)))
