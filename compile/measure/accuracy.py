"""Predictions of torch models and ONNX graphs over a split, and how sure an accuracy is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compile.text import Encoded, feed, served_batches, sorted_batches

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from compile.model import Classifier

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
# 95 % quantile of the standard normal distribution.
_Z_95 = 1.6448536269514722
_TORCH_ROWS = 64


def wilson_lower(right: int, rows: int) -> float:
    """One-sided 95 % lower bound of a share, `right` of `rows` (Wilson score, Wilson 1927)."""
    share, z2 = right / rows, _Z_95 * _Z_95
    spread = _Z_95 * ((share * (1 - share) + z2 / (4 * rows)) / rows) ** 0.5
    return float(max(0.0, (share + z2 / (2 * rows) - spread) / (1 + z2 / rows)))


def torch_outputs(
    model: Classifier, encoded: Encoded, pad: int, progress: Callable[[float, str], None] = lambda share, note: None
) -> tuple[Floats, Floats]:
    """Logits [rows, labels] and pooled vectors [rows, hidden] of a torch model, in the rows' order."""
    import torch

    from compile.device import best_device, on

    device = best_device()
    logits: Floats | None = None
    pooled: Floats | None = None
    done = 0
    model.eval()
    with torch.inference_mode(), on(model, device):
        for rows in sorted_batches(encoded, _TORCH_ROWS):
            tensors = {name: torch.from_numpy(array).to(device) for name, array in feed(encoded, rows, pad).items()}
            made = [part.cpu().numpy() for part in model(**tensors)]
            if logits is None or pooled is None:
                logits = np.empty((len(encoded), made[0].shape[1]), dtype=np.float32)
                pooled = np.empty((len(encoded), made[1].shape[1]), dtype=np.float32)
            logits[rows], pooled[rows] = made
            done += len(rows)
            progress(done / len(encoded), f"{done}/{len(encoded)} texts")
    assert logits is not None
    assert pooled is not None
    return logits, pooled


def graph_logits(session: InferenceSession, encoded: Encoded, pad: int, rows_per_batch: int) -> Floats:
    """Logits [rows, labels] of an ONNX graph in batches as served (int8 answers depend on batch-mates)."""
    logits: Floats | None = None
    for rows in served_batches(encoded, rows_per_batch):
        made = session.run(["logits"], feed(encoded, rows, pad))[0]
        if logits is None:
            logits = np.empty((len(encoded), made.shape[1]), dtype=np.float32)
        logits[rows] = made
    assert logits is not None
    return logits
