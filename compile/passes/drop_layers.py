"""Make a student of the teacher by leaving layers out: those that are named, or those that are missed least."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from compile.checkpoint import load, save
from compile.divergence import Candidate, candidates, divergence, evaluations
from compile.errors import RequirementFailed
from compile.measure.accuracy import torch_outputs
from compile.model import Classifier
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.versions import VERSIONS
from compile.specs.layers import DropLayersSpec
from compile.text import Encoded


class DropLayers(Pass):
    """teacher -> model folder with the kept layers. Gate: the kept weights are the teacher's, bit for bit.

    Where the spec says how many layers stay, `layers` of the metadata tells how many, `kept` which, and `candidates`
    every way that was tried with its divergence from the teacher.
    """

    name = "drop_layers"
    version = VERSIONS["drop_layers"]

    def __init__(self, spec: DropLayersSpec, seed: int) -> None:
        self.spec, self.seed = spec, seed

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        if self.spec.layers is not None:
            return {"layers": list(self.spec.layers)}
        return {**self.spec.model_dump(mode="json"), "seed": self.seed}

    def requires(self, inputs: Inputs, context: Context) -> None:
        """Every kept layer must exist in the teacher."""
        have, spec = int(inputs["teacher"].meta["layers"]), self.spec
        if spec.layers and spec.layers[-1] >= have:
            raise RequirementFailed(
                f"layers: {list(spec.layers)} asks for layer {spec.layers[-1]}, the base has {have}"
            )
        if spec.keep is not None and spec.keep > have:
            raise RequirementFailed(f"keep: {spec.keep} layers cannot stay, the base has {have}")

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Choose, where the spec leaves the choice, and write the shortened model."""
        torch.set_num_threads(context.threads)
        model = load(inputs["teacher"].path)
        tried: list[Candidate] = []
        kept = () if self.spec.keep == 0 else self.spec.layers
        if kept is None:
            tried = self._try(model, context)
            kept = min(tried, key=lambda one: one.divergence).layers
        model.keep_layers(kept)
        save(model, out)
        return {"layers": model.layer_count, "kept": list(kept), "candidates": [asdict(one) for one in tried]}

    def _try(self, model: Classifier, context: Context) -> list[Candidate]:
        spec, texts = self.spec, self._sample(context)
        assert spec.keep is not None
        choices = ("top", "alternate", "greedy") if spec.choose == "divergence" else (spec.choose,)
        wanted = torch_outputs(model, texts, context.pad)[0]
        total, done = evaluations(model.layer_count, spec.keep, choices), 0

        def score(kept: tuple[int, ...]) -> float:
            """Divergence of the teacher with only the layers `kept` from the whole one, over the sample."""
            nonlocal done
            short = copy.deepcopy(model)
            short.keep_layers(kept)
            done += 1
            context.progress(done / total, f"layers {' '.join(map(str, kept))}")
            return divergence(wanted, torch_outputs(short, texts, context.pad)[0], spec.temperature)

        return candidates(model.layer_count, spec.keep, choices, score)

    def _sample(self, context: Context) -> Encoded:
        """Training rows drawn by the seed."""
        count = len(context.train)
        rows = sorted(random.Random(f"layers/{self.seed}").sample(range(count), min(self.spec.samples, count)))
        types = context.train.types
        ids = tuple(context.train.ids[row] for row in rows)
        return Encoded(ids, None if types is None else tuple(types[row] for row in rows))

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """Compare every kept layer and the head with the teacher's."""
        teacher, student = load(inputs["teacher"].path), load(out)
        pairs = [(teacher.layers[index], student.layers[at]) for at, index in enumerate(meta["kept"])]
        # A table that the first layer holds for all moves to another when that one leaves.
        moves = student.family.position_bias
        differing = sum(
            name != f"{moves}.weight" and not torch.equal(dict(one.named_parameters())[name], own)
            for one, other in [*pairs, (teacher.head, student.head)]
            for name, own in other.named_parameters()
        )
        return [Gate("differing weights", differing, 0, at_most=True)]
