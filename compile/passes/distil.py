"""Train a student to answer as the teacher does: softened logits, pooled vectors, a little of the true labels.

Where the recipe asks for it, token vectors between layers and attention's relations are compared too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compile.checkpoint import load, save
from compile.divergence import evenly_spaced
from compile.errors import RequirementFailed
from compile.measure.accuracy import torch_outputs
from compile.model import Classifier
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.teach import FILE
from compile.passes.versions import VERSIONS
from compile.specs.distil import DistilSpec
from compile.teaching import (
    STATES,
    Watch,
    answer_loss,
    hidden_distance,
    keep_states,
    pooled_distance,
    relation_divergence,
    relation_parts,
)
from compile.training import CHECKPOINT, Schedule, better_than_constant, quality, train

InnerLoss = Callable[[Sequence[int]], Tensor]


class Distil(Pass):
    """student, lessons (see `Teach`) [, teacher: the model itself] -> model folder.

    Gate: better than always answering the same.
    """

    name = "distil"
    version = VERSIONS["distil"]

    def __init__(self, spec: DistilSpec, seed: int) -> None:
        self.spec, self.seed = spec, seed

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {**self.spec.model_dump(mode="json"), "seed": self.seed}

    def requires(self, inputs: Inputs, context: Context) -> None:
        """Hidden states and relations need the teacher, and its layers must be those that the map names."""
        if not self.spec.needs_teacher:
            return
        if "teacher" not in inputs:
            raise RequirementFailed(
                "hidden_weight, relation_weight: the teacher itself is needed, not its answers alone"
            )
        have = [int(inputs[role].meta["layers"]) for role in ("student", "teacher")]
        if have[0] == 0:
            raise RequirementFailed("hidden_weight, relation_weight: the student has no layers. Remedy: set both to 0")
        for pair in self.layer_map(*have):
            for at, layer in enumerate(pair):
                if layer >= have[at]:
                    whose = ("student", "teacher")[at]
                    raise RequirementFailed(f"layer_map: {list(pair)} names layer {layer}, the {whose} has {have[at]}")

    def layer_map(self, student: int, teacher: int) -> list[tuple[int, int]]:
        """Pairs (student's layer, teacher's layer) of models with so many layers, by the student's layer."""
        if self.spec.layer_map == "uniform":
            # A student with more layers than its teacher learns at as many as the teacher has.
            count = min(student, teacher)
            return list(zip(evenly_spaced(student, count), evenly_spaced(teacher, count), strict=True))
        return sorted(self.spec.layer_map)

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Train and write the student; an epoch that is done is never done again."""
        torch.set_num_threads(context.threads)
        spec = self.spec
        model = load(inputs["student"].path)
        model.set_dropout(0.0)
        model.freeze(spec.freeze_embeddings, 0)
        lessons = np.load(inputs["lessons"].path / FILE)
        scale = context.dataset.label_scale
        scale.standardise(model.head)
        teacher_logits, truth = (
            scale.standard(torch.from_numpy(one)) for one in (lessons["logits"], context.dataset.train.labels)
        )
        teacher_pooled = torch.from_numpy(lessons["pooled"])
        inner = self._inner_loss(model, inputs, out, context) if spec.needs_teacher else None

        def loss(made: tuple[Tensor, Tensor], rows: Sequence[int]) -> Tensor:
            """Mean over a batch; `made` are the student's logits and pooled vectors of training rows `rows`."""
            summed = distillation_loss(made, teacher_logits[rows], teacher_pooled[rows], truth[rows], spec)
            return summed if inner is None else summed + inner(rows)

        schedule = Schedule(
            spec.epochs,
            spec.batch_rows,
            spec.learning_rate,
            1.0,
            spec.weight_decay,
            spec.warmup_share,
            self.seed,
            spec.precision,
        )
        losses = train(
            model, model.head, context.train, context.pad, loss, schedule, out, context.progress, context.note_spent
        )
        scale.restore(model.head)
        save(model, out)
        for name in (CHECKPOINT, STATES):
            (out / name).unlink(missing_ok=True)
        found = quality(torch_outputs(model, context.validation, context.pad)[0], context.dataset.validation.labels)
        return {"losses": losses, "layers": model.layer_count, **found}

    def _inner_loss(self, student: Classifier, inputs: Inputs, out: Path, context: Context) -> InnerLoss:
        """The loss of what happens between the layers; watches the student."""
        spec, teacher = self.spec, load(inputs["teacher"].path)
        pairs = self.layer_map(student.layer_count, teacher.layer_count) if spec.hidden_weight > 0 else []
        related = spec.relation_weight > 0
        watched = Watch(teacher, [theirs for _, theirs in pairs], teacher.layer_count - 1 if related else None)
        states = keep_states(teacher, watched, context.train, context.pad, out, context.progress)
        own = Watch(student, [mine for mine, _ in pairs], student.layer_count - 1 if related else None)

        def loss(rows: Sequence[int]) -> Tensor:
            """What the student's last batch, training rows `rows`, differs in from the teacher between the layers."""
            wanted, real = states.of(rows)
            summed = torch.zeros(())
            for made, given in zip(own.hidden, wanted, strict=False):
                summed = summed + spec.hidden_weight / len(pairs) * hidden_distance(made, given, real)
            for made, given in zip(own.relations, wanted[len(pairs) :], strict=True):
                parts = relation_parts(made.shape[-1], given.shape[-1], spec.relation_heads)
                weight = spec.relation_weight / len(own.relations)
                summed = summed + weight * relation_divergence(made, given, real, parts)
            return summed

        return loss

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """The student must have learned something."""
        return [better_than_constant(meta, context)]


def distillation_loss(
    made: tuple[Tensor, Tensor], logits: Tensor, pooled: Tensor, truth: Tensor, spec: DistilSpec
) -> Tensor:
    """Weighted sum over a batch of `answer_loss` and `pooled_distance`; `made` are the student's logits and pooled."""
    answers = answer_loss(made[0], logits, truth, spec.temperature, spec.soft_weight, spec.hard_weight)
    return answers + spec.pooled_weight * pooled_distance(made[1], pooled)
