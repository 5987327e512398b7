"""Train on the labelled rows: the teacher, from the base encoder and a fresh head, or a model that was cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compile.checkpoint import from_base, load, save
from compile.measure.accuracy import torch_outputs
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.versions import VERSIONS
from compile.specs.finetune import FinetuneSpec
from compile.training import CHECKPOINT, Schedule, better_than_constant, label_loss, quality, train


class Finetune(Pass):
    """data and `base` or `model` -> model folder. Gate: better than always answering the same."""

    name = "finetune"
    version = VERSIONS["finetune"]

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
        fresh = "model" not in inputs
        model = from_base(context.base, self.pooling, len(data.labels)) if fresh else load(inputs["model"].path)
        model.set_dropout(spec.dropout)
        model.freeze(spec.freeze_embeddings, spec.freeze_layers)
        scale = data.label_scale
        if not fresh:
            scale.standardise(model.head)
        truth = scale.standard(torch.from_numpy(data.train.labels))

        def loss(made: tuple[Tensor, Tensor], rows: Sequence[int]) -> Tensor:
            return label_loss(made[0], truth[rows], spec.label_smoothing)

        schedule = Schedule(
            spec.epochs,
            spec.batch_rows,
            spec.learning_rate,
            spec.head_learning_rate_factor if fresh else 1.0,
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
        (out / CHECKPOINT).unlink(missing_ok=True)
        found = quality(torch_outputs(model, context.validation, context.pad)[0], data.validation.labels)
        return {"losses": losses, "layers": model.layer_count, **found}

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """The model must have learned something."""
        return [better_than_constant(meta, context)]
