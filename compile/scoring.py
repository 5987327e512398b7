"""What each head and unit is worth: the loss's gradient with respect to a gate on it, text by text.

With gates m on the heads and units of a trained model, the loss after closing some of them is, to second order and with
the empirical Fisher matrix for the Hessian, raised by half of (1 - m)^T F (1 - m), F the sum over texts of g g^T and g
the gradient at m = 1 (Kwon et al. 2022). The diagonal of F scores every head and unit on its own; whole blocks of F say
which of them stand in for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from compile.model import Classifier
from compile.surgery import gated, widths_of
from compile.text import Encoded
from compile.training import to_tensors

Floats = NDArray[np.float64]
_ROWS = 32
_CANDIDATES = 32


@dataclass(frozen=True)
class Gradients:
    """Per layer, the loss's gradient with respect to every gate, for every text: float64 [texts, count]."""

    heads: tuple[Floats, ...]
    units: tuple[Floats, ...]

    @property
    def head_scores(self) -> list[Floats]:
        """Diagonal of the empirical Fisher matrix per layer, [heads]: the sum over texts of the squared gradient."""
        return [np.square(layer).sum(0) for layer in self.heads]

    @property
    def unit_scores(self) -> list[Floats]:
        """As `head_scores`, per feed-forward unit, [units]."""
        return [np.square(layer).sum(0) for layer in self.units]


def gate_gradients(
    model: Classifier,
    encoded: Encoded,
    labels: NDArray[np.generic],
    pad: int,
    progress: Callable[[float, str], None] = lambda share, note: None,
) -> Gradients:
    """Gradients of each text's own loss (cross entropy; squared error with one output) in one backward pass.

    Every row of a batch has its own gates, so the gradient of the summed loss holds each text's apart from the others.
    """
    widths = widths_of(model)
    made = Gradients(
        tuple(np.zeros((len(encoded), count)) for count in widths.heads),
        tuple(np.zeros((len(encoded), count)) for count in widths.units),
    )
    truth = torch.from_numpy(labels)
    layers = model.layer_count
    model.eval()
    order = sorted(range(len(encoded)), key=lambda row: (len(encoded.ids[row]), row))
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        gates = [torch.ones(len(rows), count, requires_grad=True) for count in (*widths.heads, *widths.units)]
        with gated(model, gates[:layers], gates[layers:]):
            logits = model(**to_tensors(encoded, rows, pad))[0]
            found = torch.autograd.grad(_loss(logits, truth[rows]), gates)
        for layer, gradient in zip((*made.heads, *made.units), found, strict=True):
            layer[rows] = gradient.double().numpy()
        progress((start + len(rows)) / len(order), f"{start + len(rows)}/{len(order)} texts scored")
    return made


def _loss(logits: Tensor, truth: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return functional.mse_loss(logits[:, 0], truth.to(logits.dtype), reduction="sum")
    return functional.cross_entropy(logits, truth, reduction="sum")


def rearranged(gradients: Floats, kept: Sequence[int], max_swaps: int = 256) -> tuple[int, ...]:
    """Swap kept for left-out members of a block while that lowers the predicted loss; as many stay kept as before.

    `gradients` is [texts, count]. The predicted rise is the squared length of the summed gradients of what is left out:
    two units that undo each other may leave together, though each alone scores high. Greedy; each swap is the best one
    among the members that look best on their own.
    """
    fisher = gradients.T @ gradients
    diagonal = np.diag(fisher)
    stays = np.zeros(len(fisher), dtype=bool)
    stays[list(kept)] = True
    pull = fisher[:, ~stays].sum(1)
    smallest = 1e-9 * max(float(diagonal.sum()), 1e-300)
    for _ in range(max_swaps):
        inside, outside = np.flatnonzero(stays), np.flatnonzero(~stays)
        if not len(inside) or not len(outside):
            break
        # The rise when one of `inside` leaves and one of `outside` comes back, first each alone, then as pairs.
        leaving, coming = diagonal[inside] + 2 * pull[inside], diagonal[outside] - 2 * pull[outside]
        cheap, dear = (np.argsort(rise, kind="stable")[:_CANDIDATES] for rise in (leaving, coming))
        inside, outside = inside[cheap], outside[dear]
        change = leaving[cheap][:, None] + coming[dear][None] - 2 * fisher[np.ix_(inside, outside)]
        best = int(change.argmin())
        if change.flat[best] >= -smallest:
            break
        leaves, comes = inside[best // len(outside)], outside[best % len(outside)]
        stays[leaves], stays[comes] = False, True
        pull += fisher[:, leaves] - fisher[:, comes]
    return tuple(int(i) for i in np.flatnonzero(stays))
