"""The training loop: length-bucketed batches, linear warm-up and decay, a checkpoint after every epoch.

Batches of an epoch depend on the seed and the epoch alone, and so do the random numbers drawn in it: a run that is
killed and goes on from its last checkpoint ends with the same weights as an unbroken one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compile.data.dataset import Labels
from compile.device import best_device
from compile.measure.scores import r2
from compile.passes.base import Context, Gate
from compile.specs.base import Precision
from compile.text import Encoded, feed

_BUCKET_BATCHES = 16
CHECKPOINT = "checkpoint.pt"

Loss = Callable[[tuple[Tensor, Tensor], Sequence[int]], Tensor]
"""(logits and pooled vectors of a batch, its row numbers) -> scalar loss."""
_LEAST_R2 = 1e-3


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; rates fall linearly to 0 after a linear warm-up."""

    epochs: int
    batch_rows: int
    learning_rate: float
    head_learning_rate_factor: float
    weight_decay: float
    warmup_share: float
    seed: int
    precision: Precision = "float32"


def label_loss(logits: Tensor, truth: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of logits [rows, labels] with classes, or mean squared error [rows, 1] where truth is real."""
    if truth.is_floating_point():
        return functional.mse_loss(logits[:, 0], truth)
    return functional.cross_entropy(logits, truth, label_smoothing=smoothing)


def quality(logits: NDArray[np.float32], labels: Labels) -> dict[str, float]:
    """`validation_accuracy` of logits [rows, labels], or `validation_r2` (1 - MSE / variance) of real labels."""
    if labels.dtype.kind != "f":
        return {"validation_accuracy": float((logits.argmax(-1) == labels).mean())}
    return {"validation_r2": r2(labels.astype(np.float64), logits[:, 0].astype(np.float64))}


def better_than_constant(meta: Mapping[str, Any], context: Context) -> Gate:
    """The gate of every trained model: `quality` beats the best constant answer, by one text at least."""
    labels = context.dataset.validation.labels
    if labels.dtype.kind == "f":
        return Gate("validation R2", meta["validation_r2"], _LEAST_R2, detail="0 is always answering the mean")
    least = (int(np.bincount(labels).max()) + 1) / len(labels)
    detail = "one text more than by always answering the commonest label"
    return Gate("validation accuracy", meta["validation_accuracy"], least, detail=detail)


def to_tensors(encoded: Encoded, rows: Sequence[int], pad: int) -> dict[str, Tensor]:
    """Model inputs of the given rows as torch tensors."""
    return {name: torch.from_numpy(array) for name, array in feed(encoded, rows, pad).items()}


def epoch_batches(lengths: Sequence[int], rows: int, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers of every batch of an epoch: shuffled, then sorted by length within a few batches' worth."""
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), rows * _BUCKET_BATCHES):
        bucket = sorted(order[start : start + rows * _BUCKET_BATCHES], key=lambda i: lengths[i])
        batches += [bucket[at : at + rows] for at in range(0, len(bucket), rows)]
    rng.shuffle(batches)
    return batches


def train(
    model: nn.Module,
    head: nn.Module,
    encoded: Encoded,
    pad: int,
    loss: Loss,
    schedule: Schedule,
    work: Path,
    after_step: Callable[[float, str], None],
    after_epoch: Callable[[], None],
) -> list[float]:
    """Train in place, on a GPU where there is one, and return the mean loss of each epoch.

    `work` keeps the checkpoint. `after_step(share done, note)` reports progress; `after_epoch()` runs once an epoch's
    checkpoint is on disk.
    """
    device = best_device()
    model.to(device)
    optimizer = _optimizer(model, head, schedule)
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = _restore(work / CHECKPOINT, model, optimizer)
    lengths = encoded.lengths.tolist()
    steps_an_epoch = -(-len(lengths) // schedule.batch_rows)
    total = steps_an_epoch * schedule.epochs
    for epoch in range(len(losses), schedule.epochs):
        torch.manual_seed(schedule.seed * 1_000_003 + epoch)
        model.train()
        summed = 0.0
        for at, rows in enumerate(epoch_batches(lengths, schedule.batch_rows, schedule.seed, epoch)):
            step = epoch * steps_an_epoch + at
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * _share(step, total, schedule.warmup_share)
            given = {name: tensor.to(device) for name, tensor in to_tensors(encoded, rows, pad).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=schedule.precision == "bfloat16"):
                made = model(**given)
            # Losses are small and compare with what lies in the CPU's memory.
            value = loss((made[0].float().cpu(), made[1].float().cpu()), rows)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            summed += float(value.detach()) * len(rows)
            after_step((step + 1) / total, f"epoch {epoch + 1}/{schedule.epochs}, loss {float(value.detach()):.3f}")
        losses.append(summed / len(lengths))
        _save(work / CHECKPOINT, model, optimizer, losses)
        after_epoch()
    model.to("cpu").eval()
    return losses


def _share(step: int, total: int, warmup_share: float) -> float:
    warm = max(1.0, total * warmup_share)
    return min((step + 1) / warm, (total - step) / max(1.0, total - warm))


def _optimizer(model: nn.Module, head: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    head_ids = {id(p) for p in head.parameters()}
    body = [p for p in model.parameters() if p.requires_grad and id(p) not in head_ids]
    rate = schedule.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": [p for p in body if p.ndim > 1], "lr": rate, "weight_decay": schedule.weight_decay},
        {"params": [p for p in body if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
        {"params": list(head.parameters()), "lr": rate * schedule.head_learning_rate_factor, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], fused=True)


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]) -> None:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    partial = _partial(path)
    with partial.open("wb") as stream:
        torch.save({"model": trained, "optimizer": optimizer.state_dict(), "losses": losses}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def _partial(path: Path) -> Path:
    return path.with_suffix(".part")


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    _partial(path).unlink(missing_ok=True)
    if not path.is_file():
        return []
    state = torch.load(path, weights_only=True, map_location=next(model.parameters()).device)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in state["model"].items():
            own[name].copy_(tensor)
    optimizer.load_state_dict(state["optimizer"])
    return list(state["losses"])
