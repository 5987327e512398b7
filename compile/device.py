"""Where models are trained and run while compiling: on a GPU where torch finds one, and that it was used is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class GpuUse:
    """Whether a piece of work was given the GPU."""

    used: bool = False


_noticing: ContextVar[GpuUse | None] = ContextVar("gpu_use", default=None)


@contextmanager
def gpu_use() -> Iterator[GpuUse]:
    """Notice whether the block is given the GPU. Torch is not imported for it."""
    use = GpuUse()
    outer = _noticing.set(use)
    try:
        yield use
    finally:
        _noticing.reset(outer)


def best_device() -> torch.device:
    """The GPU, or else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    use = _noticing.get()
    if use is not None:
        use.used = True
    return torch.device("cuda")


@contextmanager
def on(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep a model on a device for the block; afterwards it is on the CPU, where everything else works on it."""
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")
