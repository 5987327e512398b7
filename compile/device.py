"""Where models are trained and run while compiling: on a GPU where torch finds one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def best_device() -> torch.device:
    """The GPU, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def on(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep a model on a device for the block; afterwards it is on the CPU, where everything else works on it."""
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")
