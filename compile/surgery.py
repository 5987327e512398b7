"""Cuts attention heads and feed-forward units out of a model's weights, and gates them without cutting.

Heads and units meet the residual stream in one place each: the output projection of attention and that of the
feed-forward block. A gate of 0 on a head's or unit's part of that projection's input is therefore the same as the head
or unit not being there, which is the law that a cut is checked against (`gated` against `cut`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from compile.families.table import Projection, present
from compile.model import Classifier

Kept = Sequence[Sequence[int]]
"""Per layer the rising indices of what stays."""


@dataclass(frozen=True)
class Widths:
    """Heads and feed-forward units of every layer."""

    heads: tuple[int, ...]
    units: tuple[int, ...]


@dataclass(frozen=True)
class Outputs:
    """The two modules of a layer through which heads and units reach the residual stream."""

    heads: nn.Module
    units: nn.Module


def output_projections(model: Classifier) -> list[Outputs]:
    """The output projections of every layer, first to last."""
    heads, units = model.family.heads_gate.path, model.family.units_gate.path
    return [Outputs(layer.get_submodule(heads), layer.get_submodule(units)) for layer in model.layers]


def input_width(projection: nn.Module) -> int:
    """How many inputs a projection has."""
    return int(weight_of(projection).shape[1])


def weight_of(projection: nn.Module) -> Tensor:
    """The weight [outputs, inputs] of a projection; of a Linear or a Conv1D, a view."""
    weight = cast(Tensor, projection.weight)
    return weight.t() if isinstance(projection, Conv1D) else weight


def multiplies(projection: nn.Module) -> int:
    """Multiply-accumulates of one token."""
    return sum(parameter.numel() for parameter in projection.parameters() if parameter.ndim > 1)


def widths_of(model: Classifier) -> Widths:
    """How many heads and units every layer has."""
    outputs = output_projections(model)
    return Widths(
        tuple(input_width(layer.heads) // model.head_size for layer in outputs),
        tuple(input_width(layer.units) for layer in outputs),
    )


def cut(model: Classifier, kept_heads: Kept, kept_units: Kept) -> None:
    """Cut away, in place, every head and unit that is not kept; layers may keep different numbers.

    Raises ValueError where the lists do not fit the model, or a layer would keep no head or no unit.
    """
    have = widths_of(model)
    _check("heads", kept_heads, have.heads)
    _check("units", kept_units, have.units)
    _own_position_biases(model)
    model.is_cut = True
    for at, layer in enumerate(model.layers):
        if len(kept_heads[at]) < have.heads[at]:
            _cut_heads(model, layer, kept_heads[at], have.heads[at])
        if len(kept_units[at]) < have.units[at]:
            units = torch.as_tensor(list(kept_units[at]))
            for projection, module in present(layer, model.family.units):
                _keep(projection, module, units)


def cut_to(model: Classifier, widths: Widths) -> None:
    """Cut to the given widths by keeping the first heads and units: the shape matters, not the values."""
    cut(model, [range(n) for n in widths.heads], [range(n) for n in widths.units])


@contextmanager
def gated(model: Classifier, heads: Sequence[Tensor | None], units: Sequence[Tensor | None]) -> Iterator[None]:
    """While open, multiply heads and units by gates: per layer [count] for all rows, or [rows, count]; None is 1."""
    with ExitStack() as open_hooks:
        for at, outputs in enumerate(output_projections(model)):
            for module, gate in ((outputs.heads, heads[at]), (outputs.units, units[at])):
                if gate is not None:
                    handle = module.register_forward_pre_hook(_gate_hook(gate))
                    open_hooks.callback(handle.remove)
        yield


def masks(kept: Kept, counts: Sequence[int]) -> list[Tensor]:
    """Gates for `gated`: 1 for what is kept, else 0, per layer [count]."""
    made = [torch.zeros(count) for count in counts]
    for mask, indices in zip(made, kept, strict=True):
        mask[list(indices)] = 1.0
    return made


def compose(first: Kept, then: Kept) -> list[tuple[int, ...]]:
    """The indices that two cuts in a row keep, counted in the model before the first."""
    return [tuple(one[i] for i in other) for one, other in zip(first, then, strict=True)]


def _gate_hook(gate: Tensor) -> Any:
    """A forward pre-hook that multiplies a projection's input [..., channels] by `gate`, each entry of which covers
    the channels of one head or unit."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = args[0]
        spread = gate.repeat_interleave(given.shape[-1] // gate.shape[-1], -1)
        if gate.ndim == 1:
            return (given * spread, *args[1:])
        # Some blocks lay all tokens in one row before the projection; rows stay in order.
        by_row = given.reshape(gate.shape[0], -1, given.shape[-1]) * spread[:, None]
        return (by_row.reshape(given.shape), *args[1:])

    return hook


def _check(what: str, kept: Kept, have: Sequence[int]) -> None:
    if len(kept) != len(have):
        raise ValueError(f"kept_{what}: names {len(kept)} layers, the model has {len(have)}")
    for layer, (indices, count) in enumerate(zip(kept, have, strict=True)):
        if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= count:
            raise ValueError(f"kept_{what}: layer {layer} must keep rising indices of its {count}, at least one")


def _cut_heads(model: Classifier, layer: nn.Module, kept: Sequence[int], have: int) -> None:
    family, size = model.family, model.head_size
    channels = (torch.as_tensor(list(kept))[:, None] * size + torch.arange(size)).flatten()
    for projection, module in present(layer, family.heads):
        _keep(projection, module, torch.cat([channels + part * have * size for part in range(projection.parts)]))
    attention = layer.get_submodule(family.attention)
    for name in family.head_counts:
        setattr(attention, name, len(kept))
    for name in family.head_widths:
        setattr(attention, name, len(kept) * size)
    if family.position_bias is not None:
        table = cast(nn.Embedding, layer.get_submodule(family.position_bias))
        table.weight, table.embedding_dim = _like(table.weight, table.weight.detach()[:, list(kept)]), len(kept)


def _own_position_biases(model: Classifier) -> None:
    """Give every layer its own copy of the bias table that the first one shares with the others (T5)."""
    path = model.family.position_bias
    if path is None:
        return
    shared = cast(nn.Embedding, model.layers[0].get_submodule(path))
    name = path.rpartition(".")[2]
    for layer in list(model.layers)[1:]:
        attention = cast(Any, layer.get_submodule(model.family.attention))
        if not hasattr(attention, name):
            table = nn.Embedding(shared.num_embeddings, shared.embedding_dim)
            table.weight = _like(shared.weight, shared.weight.detach())
            attention.add_module(name, table)
            attention.has_relative_attention_bias = True
            attention.register_forward_pre_hook(_without_shared_bias, with_kwargs=True)


def _without_shared_bias(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return args, {**kwargs, "position_bias": None}


def _keep(projection: Projection, module: nn.Module, kept: Tensor) -> None:
    """Keep a projection's outputs or inputs, whichever its heads or units are."""
    weight = weight_of(module).detach()
    _replace(module, weight[kept] if projection.makes else weight[:, kept])
    if projection.makes and module.bias is not None:
        bias = cast(nn.Parameter, module.bias)
        module.bias = _like(bias, bias.detach()[kept])


def _replace(projection: nn.Module, weight: Tensor) -> None:
    """Give a projection the weight [outputs, inputs] and the numbers that go with it."""
    outputs, inputs = weight.shape
    module, old = cast(Any, projection), cast(nn.Parameter, projection.weight)
    if isinstance(projection, Conv1D):
        module.weight, module.nf, module.nx = _like(old, weight.t()), outputs, inputs
    else:
        module.weight, module.out_features, module.in_features = _like(old, weight), outputs, inputs


def _like(old: Tensor, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.contiguous().clone(), requires_grad=old.requires_grad)
