"""Split projections into two narrower ones where that keeps the outputs and measures cheaper."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compile.checkpoint import load, save
from compile.divergence import agreement
from compile.factors import Factored, factored, put, weight_shape
from compile.families.table import present
from compile.graph.quantization import quantize_int8
from compile.graph.sessions import open_session
from compile.measure.accuracy import torch_outputs
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.prune_units import training_sample
from compile.passes.versions import VERSIONS
from compile.replay import Replay
from compile.specs.prune import LowRankSpec
from compile.surgery import weight_of
from models.manifest import TargetCpu

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_BLOCK = 16
_OPSET = 18
_RUNS = 25


class LowRank(Pass):
    """data, model -> model folder in which some projections are products of two.

    A projection's rank is the least, in steps of 16, at which its outputs on calibration texts keep the spec's share of
    their energy. The pair is used where its int8 graph measures cheaper than the whole one by as much as the spec asks.
    `meta` lists every projection with rank and measured share, the ones left whole too. Gate: the energy is kept.
    """

    name = "low_rank"
    version = VERSIONS["low_rank"]

    def __init__(self, spec: LowRankSpec, seed: int, cpu: TargetCpu, batch_rows: int) -> None:
        self.spec, self.seed, self.cpu, self.batch_rows = spec, seed, cpu, batch_rows

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        cpu = {"cpu": self.cpu.model, "reduce_range": self.cpu.reduce_range}
        return {**self.spec.model_dump(), **cpu, "seed": self.seed, "batch_rows": self.batch_rows}

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Go through the layers, each with inputs from those already split."""
        torch.set_num_threads(context.threads)
        model = load(inputs["model"].path)
        before = torch_outputs(model, context.validation, context.pad)[0]
        texts, _ = training_sample(context, self.spec.samples, self.seed)
        replay = Replay(model, texts, context.pad)
        tokens = max(1, round(self.batch_rows * float(texts.lengths.mean())))
        prices = _Prices(tokens, self.cpu.reduce_range, out)
        rows: list[dict[str, Any]] = []
        for at, layer in enumerate(model.layers):
            for projection, module in present(layer, (*model.family.heads, *model.family.units)):
                basis, kept = _basis(replay, at, module, self.spec.energy)
                outputs, width = weight_shape(module)
                share = prices.share(width, outputs, basis.shape[1])
                used = share <= self.spec.cost_share
                if used:
                    bias = cast(Tensor | None, module.bias)
                    put(model, at, projection.path, factored(weight_of(module).detach(), bias, basis))
                row = {"layer": at, "path": projection.path, "rank": basis.shape[1], "energy": kept}
                rows.append({**row, "measured_cost_share": share, "used": used})
            replay.advance(at)
            context.progress((at + 1) / model.layer_count, f"layer {at + 1}/{model.layer_count}")
        save(model, out)
        after = torch_outputs(model, context.validation, context.pad)[0]
        return {"layers": model.layer_count, "projections": rows, "validation_agreement": agreement(before, after)}

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """No split lost more of its outputs than allowed."""
        kept = [row["energy"] for row in meta["projections"] if row["used"]]
        return [Gate("least share of a split projection's output energy", min(kept, default=1.0), self.spec.energy)]


def _basis(replay: Replay, layer: int, projection: nn.Module, energy: float) -> tuple[Tensor, float]:
    """Orthonormal directions [outputs, rank] that hold `energy` of a projection's outputs, and how much they hold.

    The bias is apart: it stays whole.
    """
    weight = weight_of(projection).detach().double()
    gram = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    for given in replay.inputs(layer, projection):
        gram += given.double().t() @ given.double()
    found, directions = torch.linalg.eigh(weight @ gram @ weight.t())
    shares = found.clamp(min=0).flip(0).cumsum(0)
    shares = shares / shares[-1].clamp(min=1e-300)
    rank = int((shares < energy).sum()) + 1
    rank = min(-(-rank // _BLOCK) * _BLOCK, len(shares))
    return directions.flip(1)[:, :rank], min(1.0, float(shares[rank - 1]))


class _Prices:
    """Measured CPU time of pairs as a share of the whole projection's, in int8, each shape once."""

    def __init__(self, tokens: int, reduce_range: bool, folder: Path) -> None:
        self.tokens, self.reduce_range, self.folder = tokens, reduce_range, folder
        self._known: dict[tuple[int, int, int], float] = {}

    def share(self, inputs: int, outputs: int, rank: int) -> float:
        """Pair over whole; infinite where the pair multiplies more."""
        if rank * (inputs + outputs) >= inputs * outputs:
            return float("inf")
        key = (inputs, outputs, rank)
        if key not in self._known:
            given = np.random.default_rng(0).standard_normal((self.tokens, inputs)).astype(np.float32)
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                pair = self._session(Factored(inputs, outputs, rank, True), inputs, Path(scratch) / "pair")
                whole = self._session(nn.Linear(inputs, outputs), inputs, Path(scratch) / "whole")
            runs = [(_timed(pair, given), _timed(whole, given)) for _ in range(_RUNS)]
            self._known[key] = min(one for one, _ in runs) / min(other for _, other in runs)
        return self._known[key]

    def _session(self, module: nn.Module, inputs: int, path: Path) -> InferenceSession:
        fp32, int8 = path.with_suffix(".onnx"), path.with_suffix(".int8.onnx")
        sample, free = torch.zeros(3, inputs), {"x": {0: "tokens"}, "logits": {0: "tokens"}}
        names: dict[str, Any] = {"input_names": ["x"], "output_names": ["logits"], "dynamic_axes": free}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module.eval(), (sample,), str(fp32), opset_version=_OPSET, dynamo=False, **names)
        quantize_int8(fp32, int8, [], self.reduce_range, embeddings=False)
        return open_session(int8)


def _timed(session: InferenceSession, given: NDArray[np.float32]) -> int:
    began = time.thread_time_ns()
    session.run(["logits"], {"x": given})
    return max(time.thread_time_ns() - began, 1)
