"""The mean of a model's weights after each stage of its training: surer than the last stage alone.

Stages that begin where the one before ended lie in one basin of the loss, and the middle of a basin generalises better
than its rim (Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization"; Wortsman et al.
2022, "Model soups"). It costs no training and nothing when answering.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compile.checkpoint import load, save
from compile.measure.accuracy import torch_outputs
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.versions import VERSIONS
from compile.training import better_than_constant, quality


class Average(Pass):
    """two or more models of one shape -> model folder with their mean weights.

    Gate: better than always answering the same.
    """

    name = "average"
    version = VERSIONS["average"]

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {}

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Average in float64, write in float32."""
        torch.set_num_threads(context.threads)
        stages = [load(inputs[role].path) for role in sorted(inputs) if role != "data"]
        model = stages[-1]
        states = [stage.state_dict() for stage in stages]
        mean = {
            name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in states[-1].items()
        }
        model.load_state_dict(mean)
        save(model, out)
        found = quality(torch_outputs(model, context.validation, context.pad)[0], context.dataset.validation.labels)
        return {"stages": len(stages), "layers": model.layer_count, **found}

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """The mean must know something."""
        return [better_than_constant(meta, context)]
