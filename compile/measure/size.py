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

    Every linear layer's weights once a token, two products of tokens^2 * hidden a layer for attention, the head once.
    """
    from torch import nn

    linear = sum(m.weight.numel() for m in model.layers.modules() if isinstance(m, nn.Linear))
    hidden = int(getattr(model.config, model.family.hidden_size_key))
    attention = 2 * model.layer_count * tokens * tokens * hidden
    return round(tokens * linear + attention + model.head.weight.numel())
