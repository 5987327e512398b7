"""Attention in plain operators: what every graph form but `mha` is made of."""

from __future__ import annotations

import torch
from torch import Tensor

MASKED = -10000.0
"""Added to the score of a key that is not to be seen. Finite, so that a row without a single token yields finite
logits; beyond it exp() underflows in float32 anyway."""


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, *biases: Tensor | None) -> Tensor:
    """softmax(q k^T * scaling + biases) v as [rows, tokens, heads, size]; q, k, v are [rows, heads, tokens, size]."""
    # OPT scales the queries by itself and asks for 1.
    scores = torch.matmul(query if scaling == 1.0 else query * scaling, key.transpose(2, 3))
    for bias in biases:
        scores = scores if bias is None else scores + bias
    return torch.matmul(torch.softmax(scores, -1), value).transpose(1, 2)


def padding_bias(attention_mask: Tensor) -> Tensor:
    """0 on real keys, `MASKED` on padding: [rows, 1, 1, tokens] of a mask [rows, tokens]."""
    return (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * MASKED


def causal_bias(attention_mask: Tensor) -> Tensor:
    """0 on a token and those before it, `MASKED` on later ones: [1, 1, tokens, tokens].

    Padding stands on the right, where no real token looks, so it needs no bias of its own.
    """
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return ((places[None, :] > places[:, None]).to(torch.float32) * MASKED)[None, None]
