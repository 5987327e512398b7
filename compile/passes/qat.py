"""Fine-tune a model with int8's rounding in place, so that the file rounded later answers as the model does."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compile.checkpoint import load, save
from compile.divergence import agreement
from compile.measure.accuracy import Floats, torch_outputs
from compile.model import Classifier
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.teach import FILE
from compile.passes.versions import VERSIONS
from compile.rounding import rounded
from compile.specs.quantize import QatSpec
from compile.teaching import answer_loss
from compile.text import Encoded
from compile.training import CHECKPOINT, Schedule, better_than_constant, quality, train


class Qat(Pass):
    """student, lessons (see `Teach`) -> model folder, to be exported and quantized as ever.

    Metadata tells how often the rounded model agrees with the same model unrounded, before and after. Gate: better than
    always answering the same, rounded.
    """

    name = "qat"
    version = VERSIONS["qat"]

    def __init__(self, spec: QatSpec, seed: int) -> None:
        self.spec, self.seed = spec, seed

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {**self.spec.model_dump(mode="json"), "seed": self.seed}

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Train and write the model."""
        torch.set_num_threads(context.threads)
        model = load(inputs["student"].path)
        before = agreement(*self._both(model, context))
        model.set_dropout(0.0)
        model.freeze(self.spec.freeze_embeddings, 0)
        scale = context.dataset.label_scale
        scale.standardise(model.head)
        with rounded(model):
            losses = self._train(model, inputs, out, context)
        scale.restore(model.head)
        save(model, out)
        (out / CHECKPOINT).unlink(missing_ok=True)
        exact, coarse = self._both(model, context)
        return {
            "losses": losses,
            "layers": model.layer_count,
            "agreement_before": before,
            "agreement_after": agreement(exact, coarse),
            **quality(coarse, context.dataset.validation.labels),
        }

    def _train(self, model: Classifier, inputs: Inputs, out: Path, context: Context) -> list[float]:
        spec = self.spec
        taken, epochs = self._rows(len(context.train))
        lessons = np.load(inputs["lessons"].path / FILE)
        wanted, truth = (
            context.dataset.label_scale.standard(torch.from_numpy(one[taken]))
            for one in (lessons["logits"], context.dataset.train.labels)
        )

        def loss(made: tuple[Tensor, Tensor], rows: Sequence[int]) -> Tensor:
            return answer_loss(made[0], wanted[rows], truth[rows], spec.temperature, 1.0, spec.hard_weight)

        types = context.train.types
        ids = tuple(context.train.ids[row] for row in taken)
        texts = Encoded(ids, None if types is None else tuple(types[row] for row in taken))
        schedule = Schedule(
            epochs,
            spec.batch_rows,
            spec.learning_rate,
            1.0,
            spec.weight_decay,
            spec.warmup_share,
            self.seed,
            spec.precision,
        )
        return train(model, model.head, texts, context.pad, loss, schedule, out, context.progress, context.note_spent)

    def _rows(self, have: int) -> tuple[list[int], int]:
        """Training rows drawn by the seed, and epochs over them, that make about `steps` batches."""
        wanted = self.spec.steps * self.spec.batch_rows
        epochs = -(-wanted // have)
        return sorted(random.Random(f"qat/{self.seed}").sample(range(have), min(have, -(-wanted // epochs)))), epochs

    def _both(self, model: Classifier, context: Context) -> tuple[Floats, Floats]:
        """Logits of the validation texts, exact and rounded."""
        exact = torch_outputs(model, context.validation, context.pad)[0]
        with rounded(model):
            coarse = torch_outputs(model, context.validation, context.pad)[0]
        return exact, coarse

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """The rounded model must know something."""
        return [better_than_constant(meta, context)]
