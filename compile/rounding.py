"""Int8's rounding inside a torch model, so that it can be trained with it in place.

Weights are rounded as the dynamic quantizer rounds them, symmetrically for each output channel; what a projection reads
is rounded over the range of the whole tensor. Rounding has no slope to learn from: going back, it counts as not being
there (the straight-through estimator, Bengio et al. 2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from compile.model import Classifier


def round_activations(values: Tensor) -> Tensor:
    """Values on 256 steps between their least and greatest, 0 among them; any shape."""
    low, high = values.detach().amin().clamp(max=0.0), values.detach().amax().clamp(min=0.0)
    step = ((high - low) / 255).clamp(min=torch.finfo(values.dtype).tiny)
    zero = torch.round(-low / step)
    rounded = (torch.clamp(torch.round(values / step) + zero, 0, 255) - zero) * step
    return values + (rounded - values).detach()


def round_weights(weight: Tensor, output_axis: int) -> Tensor:
    """A matrix on 255 steps for each output channel, symmetric around 0."""
    step = weight.detach().abs().amax(dim=1 - output_axis, keepdim=True) / 127
    step = step.clamp(min=torch.finfo(weight.dtype).tiny)
    rounded = torch.round(weight / step) * step
    return weight + (rounded - weight).detach()


class _Rounded(nn.Module):
    def __init__(self, output_axis: int) -> None:
        super().__init__()
        self.output_axis = output_axis

    def forward(self, weight: Tensor) -> Tensor:
        return round_weights(weight, self.output_axis)


def projections(model: Classifier) -> list[nn.Module]:
    """Every matrix product with a weight inside the layers; the head stays in fp32, as it does in the file."""
    return [module for module in model.layers.modules() if isinstance(module, nn.Linear | Conv1D)]


@contextmanager
def rounded(model: Classifier) -> Iterator[None]:
    """Within, every projection of the layers reads and weighs as int8 would; afterwards weights are exact again."""
    hooks = []
    found = projections(model)
    for module in found:
        parametrize.register_parametrization(module, "weight", _Rounded(1 if isinstance(module, Conv1D) else 0))
        hooks.append(module.register_forward_pre_hook(_round_input))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in found:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def _round_input(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (round_activations(cast(Tensor, given[0])), *given[1:])
