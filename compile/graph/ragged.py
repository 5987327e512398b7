"""A graph that computes padding nowhere but inside attention.

Texts of a batch differ in length, and a padded batch pays for its longest text in every row. Here the real tokens of
all rows are laid in one row as the graph starts (`NonZero` of the mask), so that embeddings, projections, feed-forward
and norms see no padding. Attention alone needs rows: its queries, keys and values are gathered into padded rows, and
its result is gathered back. Inputs and outputs are those of every other form. The idea is that of effective
transformers (ByteTransformer, Zhai et al. 2022), in standard ONNX operators.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from compile.graph.attention import causal_bias, padding_bias, softmax_attention
from compile.model import Classifier

RAGGED = "jouleserve_ragged"


@dataclass
class _Layout:
    """Where tokens lie: `real` maps real tokens to padded places [total], `place` places to real tokens [rows x tokens]
    (padding to any), `bias` is what attention adds to the scores of keys that are not to be seen."""

    rows: Tensor | int
    tokens: Tensor | int
    real: Tensor
    place: Tensor
    bias: Tensor

    def pad(self, flat: Tensor) -> Tensor:
        """[total, width] -> [rows, tokens, width]; what stands in padding is of no account."""
        return flat[self.place].reshape(self.rows, self.tokens, flat.shape[-1])  # type: ignore[arg-type]


class RaggedServed(nn.Module):
    """The served graph's contract (named inputs in, logits alone out) over a ragged encoder."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits [rows, labels] of int64 inputs [rows, tokens]."""
        rows, tokens = input_ids.shape
        mask = attention_mask.reshape(-1)
        real = mask.nonzero().squeeze(1)
        place = (mask.cumsum(0) - 1).clamp(min=0)
        family = self.model.family
        bias = causal_bias(attention_mask) if family.causal else padding_bias(attention_mask)
        layout = _Layout(rows, tokens, real, place, bias)

        def flat(values: Tensor) -> Tensor:
            return values.reshape(-1)[real].unsqueeze(0)

        ids = flat(input_ids)
        options = {}
        if family.position_limit_key is not None:
            first = family.first_position(self.model.config.to_dict())
            options["position_ids"] = (real % tokens).unsqueeze(0) + first
        if token_type_ids is not None:
            options["token_type_ids"] = flat(token_type_ids)
        with _position_bias_of_rows(self.model, tokens):
            states = self.model.encoder(
                input_ids=ids, attention_mask=torch.ones_like(ids), jouleserve_layout=layout, **options
            ).last_hidden_state
        logits: Tensor = self.model.head(self.model.pool(layout.pad(states[0]), attention_mask))
        return logits


@contextlib.contextmanager
def _position_bias_of_rows(model: Classifier, tokens: Tensor | int) -> Iterator[None]:
    """Distances count within a row, though the encoder sees all rows as one."""
    path = model.family.position_bias
    owners = [] if path is None else [layer.get_submodule(path.rpartition(".")[0]) for layer in model.layers]
    for owner in owners:
        biases = cast(Any, owner).compute_bias
        owner.compute_bias = lambda *_, biases=biases, **__: biases(tokens, tokens)  # type: ignore[assignment]
    try:
        yield
    finally:
        for owner in owners:
            del owner.compute_bias


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    jouleserve_layout: _Layout,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax attention within each row; q, k, v and the result hold all real tokens as one row."""
    layout = jouleserve_layout
    heads, size = query.shape[1], query.shape[3]

    def in_rows(x: Tensor) -> Tensor:
        padded = layout.pad(x.transpose(1, 2).reshape(-1, heads * size))
        return padded.reshape(layout.rows, layout.tokens, heads, size).transpose(1, 2)  # type: ignore[arg-type]

    mixed = softmax_attention(in_rows(query), in_rows(key), in_rows(value), scaling, position_bias, layout.bias)
    return mixed.reshape(-1, heads * size)[layout.real].reshape(1, -1, heads, size), None


def _no_mask(**_: Any) -> None:
    """The layout's bias masks; the encoder need not."""


AttentionInterface.register(RAGGED, _attention)
AttentionMaskInterface.register(RAGGED, _no_mask)
