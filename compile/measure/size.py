"""How large a model is: parameters and multiply-accumulates."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compile.model import Classifier


def parameters(model: Classifier) -> int:
    """Number of parameters, embedding tables included."""
    return sum(p.numel() for p in model.parameters())


def macs(model: Classifier, tokens: float) -> int:
    """Multiply-accumulates of one text of `tokens` tokens.

    Every projection's weights once a token, two products of tokens^2 * heads' width a layer for attention, the head
    once.
    """
    from compile.families.table import present
    from compile.surgery import multiplies, widths_of

    projections = (*model.family.heads, *model.family.units)
    linear = sum(multiplies(module) for layer in model.layers for _, module in present(layer, projections))
    attention = 2 * tokens * tokens * sum(widths_of(model).heads) * model.head_size
    return round(tokens * linear + attention + model.head.weight.numel())
