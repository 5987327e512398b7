"""What a student learns from its teacher: answers, sentence vectors, token vectors, relations between tokens.

Token vectors of the teacher do not change while the student learns, so they are worked out once and kept on disk in
half precision, real tokens only, one row a token (`TokenStates`).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from compile.errors import StorageError
from compile.families.table import present
from compile.model import Classifier
from compile.text import Encoded, Ints, feed, sorted_batches
from compile.training import label_loss

STATES = "checkpoint-states.npy"
_ROWS = 64
_BYTES_A_VALUE = 2


class Watch:
    """Notes, as a model runs, what some layers put out and the queries, keys and values of one layer.

    After each run `hidden` holds a tensor [rows, tokens, hidden] for each of `layers`, and `relations` three tensors
    [rows, tokens, heads x head size], or none where no `related` layer is given.
    """

    def __init__(self, model: Classifier, layers: Sequence[int], related: int | None) -> None:
        self.layers = list(layers)
        self.relations: list[Tensor] = []
        self._put_out: dict[int, Tensor] = {}
        for at in set(layers):
            model.layers[at].register_forward_hook(self._note_layer(at))
        if related is not None:
            model.layers[related].register_forward_pre_hook(self._begin_relations)
            for projection, module in present(model.layers[related], model.family.heads):
                if projection.makes:
                    module.register_forward_hook(self._note_parts(projection.parts))

    def _note_layer(self, at: int) -> Callable[[Any, Any, Any], None]:
        def note(module: Any, given: Any, made: Any) -> None:
            self._put_out[at] = (made[0] if isinstance(made, tuple) else made).float().cpu()

        return note

    def _begin_relations(self, module: Any, given: Any) -> None:
        self.relations = []

    def _note_parts(self, parts: int) -> Callable[[Any, Any, Tensor], None]:
        def note(module: Any, given: Any, made: Tensor) -> None:
            self.relations += made.float().cpu().chunk(parts, -1)

        return note

    @property
    def hidden(self) -> list[Tensor]:
        """What each of `layers` put out in the last run."""
        return [self._put_out[at] for at in self.layers]

    @property
    def seen(self) -> list[Tensor]:
        """All that was noted in the last run."""
        return [*self.hidden, *self.relations]


class TokenStates:
    """A teacher's watched tensors over all training rows, on disk: float16 [real tokens, all widths side by side]."""

    def __init__(self, path: Path, encoded: Encoded, widths: Sequence[int]) -> None:
        self.lengths, self.widths = encoded.lengths, list(widths)
        self.starts: Ints = np.concatenate([[0], np.cumsum(self.lengths)])
        self.values: NDArray[np.float16] = np.load(path, mmap_mode="r")

    def of(self, rows: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """The tensors [rows, longest, width] of some rows, and which tokens are real (bool [rows, longest])."""
        lengths = torch.from_numpy(self.lengths[rows])
        real = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
        parts = np.concatenate([self.values[self.starts[row] : self.starts[row + 1]] for row in rows])
        padded = torch.zeros(*real.shape, parts.shape[1])
        padded[real] = torch.from_numpy(parts.astype(np.float32))
        return list(torch.split(padded, self.widths, -1)), real


def keep_states(
    model: Classifier, watch: Watch, encoded: Encoded, pad: int, folder: Path, progress: Callable[[float, str], None]
) -> TokenStates:
    """Run a watched teacher over all rows and keep what it saw in `folder`, unless it is there from a killed run.

    Raises StorageError where the disk is too small.
    """
    path, starts = folder / STATES, np.concatenate([[0], np.cumsum(encoded.lengths)])
    model.eval()
    first = _seen(model, watch, encoded, [0], pad)
    widths = [part.shape[-1] for part in first]
    total = (int(starts[-1]), sum(widths))
    if not (path.is_file() and np.load(path, mmap_mode="r").shape == total):
        _check_room(folder, math.prod(total) * _BYTES_A_VALUE)
        partial = path.with_suffix(".part")
        values = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=total)
        done = 0
        for rows in sorted_batches(encoded, _ROWS):
            whole = torch.cat(_seen(model, watch, encoded, rows, pad), -1).numpy()
            for at, row in enumerate(rows):
                values[starts[row] : starts[row + 1]] = whole[at, : encoded.lengths[row]]
            done += len(rows)
            progress(done / len(encoded), f"the teacher's token vectors, {done}/{len(encoded)} texts")
        values.flush()
        del values
        os.replace(partial, path)
    return TokenStates(path, encoded, widths)


def _seen(model: Classifier, watch: Watch, encoded: Encoded, rows: Sequence[int], pad: int) -> list[Tensor]:
    with torch.inference_mode():
        model(**{name: torch.from_numpy(array) for name, array in feed(encoded, rows, pad).items()})
    return watch.seen


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            "work",
            f"the teacher's token vectors take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in {folder}",
            "free space, lower data.max_train_rows or max_tokens, or set hidden_weight and relation_weight to 0",
        )


def answer_loss(
    logits: Tensor, wanted: Tensor, truth: Tensor, temperature: float, soft_weight: float, hard_weight: float
) -> Tensor:
    """T^2-scaled KL divergence from the teacher's softened answers (Hinton et al. 2015) and cross entropy, weighted.

    `logits` and `wanted` are [rows, labels], `truth` [rows]. With real labels (regression), squared differences both.
    """
    hard = hard_weight * label_loss(logits, truth)
    if truth.is_floating_point():
        return soft_weight * functional.mse_loss(logits, wanted) + hard
    soft = functional.kl_div(
        functional.log_softmax(logits / temperature, -1),
        functional.softmax(wanted / temperature, -1),
        reduction="batchmean",
    )
    return soft_weight * temperature * temperature * soft + hard


def pooled_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference over the teacher's own mean square: 1 is as bad as answering zero."""
    return functional.mse_loss(made, wanted) / wanted.square().mean()


def hidden_distance(made: Tensor, wanted: Tensor, real: Tensor) -> Tensor:
    """Mean squared difference of real tokens' vectors [rows, tokens, hidden], each brought to mean 0 and variance 1.

    Brought so because a few channels of the residual stream reach a hundred times farther than the rest.
    """
    width = (made.shape[-1],)
    return functional.mse_loss(functional.layer_norm(made[real], width), functional.layer_norm(wanted[real], width))


def relation_parts(made: int, wanted: int, most: int) -> int:
    """Into how many parts vectors of two widths can both be split: the largest number up to `most`."""
    return max(parts for parts in range(1, most + 1) if made % parts == 0 and wanted % parts == 0)


def relation_divergence(made: Tensor, wanted: Tensor, real: Tensor, parts: int) -> Tensor:
    """Mean KL(teacher || student) over real tokens and parts of how alike a token is to the others of its text.

    Vectors [rows, tokens, width] are split into `parts`; a relation is the softmax over tokens of their scaled scalar
    products (MiniLMv2, Wang et al. 2021). Widths may differ.
    """
    theirs, own = (_relations(vectors, real, parts) for vectors in (wanted, made))
    each = (theirs.exp() * (theirs - own)).sum(-1)
    return each.transpose(1, 2)[real].mean()


def _relations(vectors: Tensor, real: Tensor, parts: int) -> Tensor:
    """Log-probabilities [rows, parts, tokens, tokens]."""
    rows, tokens, width = vectors.shape
    split = vectors.reshape(rows, tokens, parts, width // parts).transpose(1, 2)
    alike = split @ split.transpose(2, 3) / math.sqrt(width // parts)
    # Finite: a padding token's share is 0 either way, and 0 times minus infinity would be no number.
    return functional.log_softmax(alike.masked_fill(~real[:, None, None, :], -1e4), -1)
