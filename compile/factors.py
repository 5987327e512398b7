"""Projections as products of two narrower ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compile.model import Classifier
from compile.surgery import weight_of


class Factored(nn.Module):
    """x -> second(first(x)) with `rank` numbers in between; the bias, if any, comes last."""

    def __init__(self, inputs: int, outputs: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, rank, bias=False)
        self.second = nn.Linear(rank, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., outputs] of inputs [..., inputs]."""
        made: Tensor = self.second(self.first(x))
        return made

    @property
    def weight(self) -> Tensor:
        """The product [outputs, inputs]."""
        return self.second.weight @ self.first.weight


def factored(weight: Tensor, bias: Tensor | None, basis: Tensor) -> Factored:
    """A projection with weight [outputs, inputs] whose outputs are kept to the columns of `basis` [outputs, rank].

    The basis is orthonormal: the product is the weight projected on it.
    """
    made = Factored(weight.shape[1], weight.shape[0], basis.shape[1], bias is not None)
    with torch.no_grad():
        made.first.weight.copy_(basis.t() @ weight.double())
        made.second.weight.copy_(basis)
        if bias is not None:
            made.second.bias.copy_(bias)
    return made


def put(model: Classifier, layer: int, path: str, module: Factored) -> None:
    """Put a factored projection in the place of a whole one, in place."""
    parent, _, name = path.rpartition(".")
    setattr(model.layers[layer].get_submodule(parent), name, module)
    model.ranks = {**model.ranks, f"{layer}.{path}": module.first.out_features}


def shape_factors(model: Classifier, ranks: Mapping[str, int]) -> None:
    """Factor the named projections (`layer.path`) to the given ranks: the shapes matter, not the values."""
    for name, rank in ranks.items():
        layer, _, path = name.partition(".")
        old = model.layers[int(layer)].get_submodule(path)
        outputs, inputs = weight_shape(old)
        put(model, int(layer), path, Factored(inputs, outputs, rank, old.bias is not None))


def weight_shape(projection: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a Linear, a Conv1D or a factored projection."""
    outputs, inputs = weight_of(projection).shape
    return int(outputs), int(inputs)
