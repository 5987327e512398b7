"""Train a student to answer as the teacher does: softened logits, pooled vectors, a little of the true labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compile.measure.accuracy import torch_predictions
from compile.model import load
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.teach import FILE
from compile.recipe import DistilSpec
from compile.training import CHECKPOINT, Schedule, train


class Distil(Pass):
    """student, lessons (see `Teach`) -> model folder. Gate: better than always answering the commonest label."""

    name = "distil"

    def __init__(self, spec: DistilSpec, seed: int) -> None:
        self.spec, self.seed = spec, seed

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {**self.spec.model_dump(), "seed": self.seed}

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Train and write the student; an epoch that is done is never done again."""
        torch.set_num_threads(context.threads)
        spec = self.spec
        model = load(inputs["student"].path)
        model.set_dropout(0.0)
        model.freeze(spec.freeze_embeddings, 0)
        lessons = np.load(inputs["lessons"].path / FILE)
        teacher_logits, teacher_pooled = torch.from_numpy(lessons["logits"]), torch.from_numpy(lessons["pooled"])
        truth = torch.from_numpy(context.dataset.train.labels)

        def loss(made: tuple[Tensor, Tensor], rows: Sequence[int]) -> Tensor:
            return distillation_loss(made, teacher_logits[rows], teacher_pooled[rows], truth[rows], spec)

        schedule = Schedule(
            spec.epochs, spec.batch_rows, spec.learning_rate, 1.0, spec.weight_decay, spec.warmup_share, self.seed
        )
        losses = train(
            model, model.head, context.train, context.pad, loss, schedule, out, context.progress, context.note_spent
        )
        model.save(out)
        (out / CHECKPOINT).unlink(missing_ok=True)
        predicted = torch_predictions(model, context.validation, context.pad)
        accuracy = float((predicted == context.dataset.validation.labels).mean())
        return {"losses": losses, "layers": model.layer_count, "validation_accuracy": accuracy}

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """The student must have learned something."""
        labels = torch.from_numpy(context.dataset.validation.labels)
        commonest = float(torch.bincount(labels).max()) / len(labels)
        return [Gate("validation accuracy", meta["validation_accuracy"], commonest, detail="commonest label's share")]


def distillation_loss(
    made: tuple[Tensor, Tensor], logits: Tensor, pooled: Tensor, truth: Tensor, spec: DistilSpec
) -> Tensor:
    """Weighted sum of T^2-scaled KL divergence (Hinton et al. 2015), pooled-vector distance and cross entropy.

    The pooled distance is the mean squared error over the teacher's own mean square: 1 is as bad as answering zero.
    """
    warm = spec.temperature
    soft = functional.kl_div(
        functional.log_softmax(made[0] / warm, -1), functional.softmax(logits / warm, -1), reduction="batchmean"
    )
    near = functional.mse_loss(made[1], pooled) / pooled.square().mean()
    hard = functional.cross_entropy(made[0], truth)
    return spec.soft_weight * warm * warm * soft + spec.pooled_weight * near + spec.hard_weight * hard
