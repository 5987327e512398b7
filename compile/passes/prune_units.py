"""Cut attention heads and feed-forward units out of a model."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compile.artifact import Artifact
from compile.checkpoint import load, save
from compile.errors import RequirementFailed
from compile.knapsack import TooDear
from compile.measure.cpu import served_cpu_seconds
from compile.measure.widths import WidthTable
from compile.model import Classifier
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.export import sample_inputs
from compile.passes.time_widths import Int8Export, int8_session, sample
from compile.passes.versions import VERSIONS
from compile.pruning import Kept, within_cost, within_numbers
from compile.scoring import Gradients, gate_gradients
from compile.specs.prune import PruneUnitsSpec
from compile.surgery import Widths, compose, cut, gated, masks, widths_of
from compile.text import Encoded

MAX_DIFFERENCE = 1e-5
_REPEATS = 3
_SHAPES = ((3, 7), (4, 16), (1, 5))


class PruneUnits(Pass):
    """data, model and, for a `cost_share`, widths (see `TimeWidths`) -> a model folder with narrower layers.

    Gate: the cut model answers as the given one with the same heads and units masked by zeros. `meta` holds the indices
    kept (of the given model), the widths, and the predicted and the measured share of the cost of the same layers at
    full width.
    """

    name = "prune_units"
    version = VERSIONS["prune_units"]

    def __init__(self, spec: PruneUnitsSpec, seed: int) -> None:
        self.spec, self.seed = spec, seed

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {**self.spec.model_dump(), "seed": self.seed}

    def requires(self, inputs: Inputs, context: Context) -> None:
        """There must be layers to cut, and a share of the cost needs measured costs."""
        if inputs["model"].meta.get("layers") == 0:
            raise RequirementFailed("prune_units: the model has no layers. Remedy: take the pass out")
        if self.spec.cost_share is not None and "widths" not in inputs:
            raise RequirementFailed("prune_units.cost_share: no table of widths was measured; run time_widths before")

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Score, choose and cut, as often as the spec's rounds say."""
        torch.set_num_threads(context.threads)
        model = load(inputs["model"].path)
        before = widths_of(model)
        texts, labels = training_sample(context, self.spec.samples, self.seed)
        full = Classifier(model.family, model.config, model.pooling, model.labels).eval()
        table = WidthTable.from_plain(inputs["widths"].meta["table"]) if "widths" in inputs else None
        aim = _Aim(self.spec, before, widths_of(full), table)
        heads, units = [tuple(range(n)) for n in before.heads], [tuple(range(n)) for n in before.units]
        for number in range(1, self.spec.rounds + 1):
            start = (number - 1) / self.spec.rounds

            def report(share: float, note: str, start: float = start, number: int = number) -> None:
                context.progress(start + share / self.spec.rounds, f"round {number}: {note}")

            kept = aim.choose(gate_gradients(model, texts, labels, context.pad, report), number / self.spec.rounds)
            heads, units = compose(heads, kept.heads), compose(units, kept.units)
            cut(model, kept.heads, kept.units)
        save(model, out)
        if table is not None:
            context.progress(1.0, "timing the pruned model")
        widths = widths_of(model)
        return {
            "layers": model.layer_count,
            "kept_heads": [list(kept) for kept in heads],
            "kept_units": [list(kept) for kept in units],
            "heads": list(widths.heads),
            "units": list(widths.units),
            "predicted_cost_share": None if table is None else table.share(widths),
            "measured_cost_share": None
            if table is None
            else measured_share(model, full, inputs["widths"], out, context),
        }

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """Compare the cut model with the masked one, and its predicted cost with what was asked."""
        masked = load(inputs["model"].path)
        difference = masked_difference(masked, load(out), meta["kept_heads"], meta["kept_units"], context)
        limit = MAX_DIFFERENCE * context.answer_unit
        gates = [Gate("largest difference from the masked model", difference, limit, at_most=True)]
        if self.spec.cost_share is not None:
            predicted = float(meta["predicted_cost_share"])
            gates.append(
                Gate("predicted share of the uncut cost", predicted, self.spec.cost_share + 1e-9, at_most=True)
            )
        return gates


class _Aim:
    """What a spec asks of a model, and the way there in steps of equal ratio."""

    def __init__(self, spec: PruneUnitsSpec, start: Widths, full: Widths, table: WidthTable | None) -> None:
        self.spec, self.start, self.full, self.table = spec, start, full, table

    def choose(self, gradients: Gradients, progress: float) -> Kept:
        """What stays when `progress` (0 to 1] of the way is gone; raises RequirementFailed if that cannot be had."""
        spec = self.spec
        try:
            if spec.cost_share is not None and self.table is not None:
                begin, full = self.table.seconds(self.start), self.table.seconds(self.full)
                return within_cost(
                    gradients, self.table, _between(begin, spec.cost_share * full, progress), spec.unit_group
                )
            heads = self._number(spec.heads, sum(self.start.heads), sum(self.full.heads), progress)
            units = self._number(spec.units, sum(self.start.units), sum(self.full.units), progress)
            return within_numbers(gradients, heads, units, spec.unit_group)
        except TooDear as error:
            problem = f"prune_units: no model is so small: {error}"
            raise RequirementFailed(f"{problem}. Remedy: ask for a larger share, or drop layers before") from error

    @staticmethod
    def _number(share: float | None, begin: int, full: int, progress: float) -> int | None:
        return None if share is None else round(_between(begin, share * full, progress))


def _between(begin: float, end: float, progress: float) -> float:
    return end if progress >= 1 or begin <= end else begin * (end / begin) ** progress


def measured_share(model: Classifier, full: Classifier, widths: Artifact, folder: Path, context: Context) -> float:
    """CPU time of a model's int8 graph over that of the same layers at full width, taking turns, as served.

    `widths` says how graphs are made; one run on a busy machine repeats within about a tenth.
    """
    export = Int8Export(**widths.meta["export"])
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        sessions = {
            name: int8_session(one, export, context, Path(scratch) / name)
            for name, one in (("pruned", model), ("full", full))
        }
        spent = served_cpu_seconds(sessions, sample(context), context.pad, context.batch_rows, _REPEATS)
    return spent["pruned"] / spent["full"]


def training_sample(context: Context, count: int, seed: int) -> tuple[Encoded, np.ndarray[Any, np.dtype[Any]]]:
    """At most `count` random training rows, tokenized, with their labels; the same for the same seed."""
    total = len(context.train)
    rows = sorted(random.Random(f"sample/{seed}").sample(range(total), min(count, total)))
    types = context.train.types
    ids = tuple(context.train.ids[row] for row in rows)
    texts = Encoded(ids, None if types is None else tuple(types[row] for row in rows))
    return texts, context.dataset.train.labels[rows]


def masked_difference(
    whole: Classifier, sliced: Classifier, kept_heads: Any, kept_units: Any, context: Context
) -> float:
    """Largest |logit difference| between a cut model and the uncut one with gates of 0 on what was cut.

    Computed in float64, where sums in another order cannot hide a wrong slice.
    """
    widths, rng, worst = widths_of(whole), np.random.default_rng(0), 0.0
    gates = [[mask.double() for mask in masks(*of)] for of in ((kept_heads, widths.heads), (kept_units, widths.units))]
    whole, sliced = whole.double(), sliced.double()
    with gated(whole, *gates), torch.inference_mode():
        for rows, tokens in _SHAPES:
            arrays = sample_inputs(rows, tokens, context, rng)
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            difference = float((whole(**tensors)[0] - sliced(**tensors)[0]).abs().max())
            worst = max(worst, float("inf") if difference != difference else difference)
    return worst
