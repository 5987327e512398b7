"""Make a student of the teacher by leaving layers out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compile.errors import RequirementFailed
from compile.model import load
from compile.passes.base import Context, Gate, Inputs, Pass


class DropLayers(Pass):
    """teacher -> model folder with the kept layers. Gate: the kept weights are the teacher's, bit for bit."""

    name = "drop_layers"

    def __init__(self, kept: tuple[int, ...]) -> None:
        self.kept = kept

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {"kept": list(self.kept)}

    def requires(self, inputs: Inputs, context: Context) -> None:
        """Every kept layer must exist in the teacher."""
        have = int(inputs["teacher"].meta["layers"])
        if self.kept[-1] >= have:
            raise RequirementFailed(f"layers: {list(self.kept)} asks for layer {self.kept[-1]}, the base has {have}")

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Write the shortened model."""
        model = load(inputs["teacher"].path)
        model.keep_layers(self.kept)
        model.save(out)
        return {"layers": model.layer_count}

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """Compare every kept layer and the head with the teacher's."""
        teacher, student = load(inputs["teacher"].path), load(out)
        pairs = [(teacher.layers[index], student.layers[at]) for at, index in enumerate(self.kept)]
        pairs.append((teacher.head, student.head))
        differing = sum(
            not torch.equal(a, b)
            for one, other in pairs
            for a, b in zip(one.parameters(), other.parameters(), strict=True)
        )
        return [Gate("differing weights", differing, 0, at_most=True)]
