"""Collect once what students learn from: the teacher's logits and pooled vectors of every training row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compile.checkpoint import load
from compile.measure.accuracy import torch_outputs
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.versions import VERSIONS

FILE = "teacher.npz"


class Teach(Pass):
    """teacher -> teacher.npz with `logits` [rows, labels] and `pooled` [rows, hidden], float32."""

    name = "teach"
    version = VERSIONS["teach"]

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {}

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Run the teacher over the training rows."""
        torch.set_num_threads(context.threads)
        model = load(inputs["teacher"].path)
        logits, pooled = torch_outputs(model, context.train, context.pad, context.progress)
        np.savez(out / FILE, logits=logits, pooled=pooled)
        return {"rows": len(logits)}

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """No row may be missing and no figure infinite."""
        made = np.load(out / FILE)
        broken = sum(int((~np.isfinite(made[name])).sum()) for name in ("logits", "pooled"))
        return [
            Gate("rows", len(made["logits"]), len(context.train)),
            Gate("figures that are not finite", broken, 0, at_most=True),
        ]
