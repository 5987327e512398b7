"""Fine-tune the teacher: base encoder, pooling and a fresh head on the labelled training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compile.measure.accuracy import torch_predictions
from compile.model import from_base
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.recipe import FinetuneSpec
from compile.training import CHECKPOINT, Schedule, train


class Finetune(Pass):
    """data -> model folder. Gate: better than always answering the commonest label."""

    name = "finetune"

    def __init__(self, spec: FinetuneSpec, pooling: str, seed: int, max_tokens: int) -> None:
        self.spec, self.pooling, self.seed, self.max_tokens = spec, pooling, seed, max_tokens

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        fixed = {"pooling": self.pooling, "seed": self.seed, "max_tokens": self.max_tokens}
        return {**self.spec.model_dump(), **fixed}

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Train and write the model; an epoch that is done is never done again."""
        torch.set_num_threads(context.threads)
        torch.manual_seed(self.seed)
        spec, data = self.spec, context.dataset
        model = from_base(context.base, self.pooling, len(data.labels))
        model.set_dropout(spec.dropout)
        model.freeze(spec.freeze_embeddings, spec.freeze_layers)
        truth = torch.from_numpy(data.train.labels)

        def loss(made: tuple[Tensor, Tensor], rows: Sequence[int]) -> Tensor:
            return torch.nn.functional.cross_entropy(made[0], truth[rows], label_smoothing=spec.label_smoothing)

        schedule = Schedule(
            spec.epochs,
            spec.batch_rows,
            spec.learning_rate,
            spec.head_learning_rate_factor,
            spec.weight_decay,
            spec.warmup_share,
            self.seed,
        )
        losses = train(
            model, model.head, context.train, context.pad, loss, schedule, out, context.progress, context.note_spent
        )
        model.save(out)
        (out / CHECKPOINT).unlink(missing_ok=True)
        predicted = torch_predictions(model, context.validation, context.pad)
        return {
            "losses": losses,
            "layers": model.layer_count,
            "validation_accuracy": float((predicted == data.validation.labels).mean()),
        }

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """The teacher must have learned something."""
        labels = torch.from_numpy(context.dataset.validation.labels)
        commonest = float(torch.bincount(labels).max()) / len(labels)
        return [Gate("validation accuracy", meta["validation_accuracy"], commonest, detail="commonest label's share")]
