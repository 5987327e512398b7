"""Fit a cut model's output projections to what the uncut model puts out, layer by layer, without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compile.checkpoint import load, save
from compile.divergence import divergence
from compile.errors import RequirementFailed
from compile.measure.accuracy import torch_outputs
from compile.model import Classifier
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.prune_units import training_sample
from compile.passes.versions import VERSIONS
from compile.replay import Replay
from compile.specs.prune import ReconstructSpec
from compile.surgery import output_projections, weight_of
from compile.text import Encoded

_HELD_OUT_TEXTS = 256
# Divergence below which two models answer alike, so that an uncut layer's rounding fails no gate.
_NOTHING = 1e-6


class Reconstruct(Pass):
    """data, model (cut), uncut (the model before the cut) -> model folder with fitted output projections.

    Each layer's attention output and feed-forward output are fitted by ridge least squares: inputs from the cut model
    as it stands by then, targets from the uncut model. Where the answers to validation texts end up further from the
    uncut model's than before, beyond the tolerance, the layers are fitted again and each one whose fit is to blame
    keeps its old weights. Gate: the divergence is within the tolerance of what it was.
    """

    name = "reconstruct"
    version = VERSIONS["reconstruct"]

    def __init__(self, spec: ReconstructSpec, seed: int) -> None:
        self.spec, self.seed = spec, seed

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {**self.spec.model_dump(), "seed": self.seed}

    def requires(self, inputs: Inputs, context: Context) -> None:
        """Both models have the same layers."""
        cut, uncut = (int(inputs[role].meta["layers"]) for role in ("model", "uncut"))
        if cut != uncut:
            raise RequirementFailed(f"reconstruct: the cut model has {cut} layers, the uncut one {uncut}")

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Fit all layers; where the answers then drift further than before, fit again and judge each layer apart."""
        torch.set_num_threads(context.threads)
        uncut = load(inputs["uncut"].path)
        texts, _ = training_sample(context, self.spec.samples, self.seed)
        held_out = _evenly(context.validation, _HELD_OUT_TEXTS)
        wanted = torch_outputs(uncut, held_out, context.pad)[0]

        def drift(model: Classifier) -> float:
            return divergence(wanted, torch_outputs(model, held_out, context.pad)[0], 1.0)

        before = drift(load(inputs["model"].path))
        limit = self._limit(before)
        for judge in (None, lambda model: drift(model) <= limit):
            model = load(inputs["model"].path)
            layers = _fit_layers(model, uncut, texts, context, self.spec.ridge, judge)
            after = drift(model)
            if after <= limit:
                break
        save(model, out)
        return {"layers": model.layer_count, "divergence_before": before, "divergence_after": after, "fits": layers}

    def _limit(self, before: float) -> float:
        return before * (1 + self.spec.tolerance) + _NOTHING

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """The answers have not drifted further from the uncut model's."""
        limit = self._limit(float(meta["divergence_before"]))
        return [Gate("validation divergence from the uncut model", meta["divergence_after"], limit, at_most=True)]


def _fit_layers(
    model: Classifier,
    uncut: Classifier,
    texts: Encoded,
    context: Context,
    ridge: float,
    judge: Callable[[Classifier], bool] | None,
) -> list[dict[str, Any]]:
    """Fit layer after layer, in place; one that the judge turns down keeps its old weights. Says what was done."""
    targets, replay = Replay(uncut, texts, context.pad), Replay(model, texts, context.pad)
    layers: list[dict[str, Any]] = []
    for at, (own, other) in enumerate(zip(output_projections(model), output_projections(uncut), strict=True)):
        old = {name: value.clone() for name, value in model.layers[at].state_dict().items()}
        errors = [
            fit(mine, zip(replay.inputs(at, mine), targets.outputs(at, theirs), strict=True), ridge)
            for mine, theirs in ((own.heads, other.heads), (own.units, other.units))
        ]
        fitted = judge is None or judge(model)
        if not fitted:
            model.layers[at].load_state_dict(old)
        layers.append({"fitted": fitted, "error_before_and_after": errors})
        targets.advance(at)
        replay.advance(at)
        context.progress((at + 1) / model.layer_count, f"layer {at + 1}/{model.layer_count} fitted")
    return layers


def fit(projection: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]], ridge: float) -> tuple[float, float]:
    """Set weight and bias to the ridge solution over `pairs` of (inputs, wanted outputs), each [tokens, width].

    Minimises |X W - Y|^2 + r |W - W_old|^2 in float64, with r = `ridge` times the mean square of an input's column.
    Returns the mean squared output error before and after.
    """
    bias = projection.bias if isinstance(projection.bias, Tensor) else None
    old = weight_of(projection).detach().double().t()
    if bias is not None:
        old = torch.cat([old, bias.detach().double()[None]])
    gram, cross = torch.zeros(len(old), len(old), dtype=torch.float64), torch.zeros_like(old)
    square, count = 0.0, 0
    for given, wanted in pairs:
        columns = given.double()
        if bias is not None:
            columns = torch.cat([columns, torch.ones(len(columns), 1, dtype=torch.float64)], 1)
        missed = wanted.double() - columns @ old
        gram += columns.t() @ columns
        cross += columns.t() @ missed
        square, count = square + float(missed.square().sum()), count + missed.numel()
    pull = ridge * float(gram.diagonal().mean())
    step = torch.linalg.solve(gram + pull * torch.eye(len(gram), dtype=torch.float64), cross)
    after = square - 2 * float((step * cross).sum()) + float((step * (gram @ step)).sum())
    solved = old + step
    with torch.no_grad():
        weight_of(projection).copy_(solved[: len(solved) - (bias is not None)].t())
        if bias is not None:
            bias.copy_(solved[-1])
    return square / count, max(after, 0.0) / count


def _evenly(encoded: Encoded, texts: int) -> Encoded:
    return encoded.every(len(encoded) // texts)
