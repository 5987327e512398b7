"""A graph that computes padding nowhere but inside attention.

Texts of a batch differ in length, and a padded batch pays for its longest text in every row. Here the real tokens of
all rows are laid in one row as the graph starts (`NonZero` of the mask), so that embeddings, projections, feed-forward
and norms see no padding. Attention alone needs rows: its queries, keys and values are gathered into padded rows, and
its result is gathered back. Inputs and outputs are those of every other form. The idea is that of effective
transformers (ByteTransformer, Zhai et al. 2022), in standard ONNX operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from compile.model import Classifier

RAGGED = "jouleserve_ragged"


@dataclass
class _Layout:
    """Where tokens lie: `real` maps real tokens to padded places [total], `place` places to real tokens [rows x tokens]
    (padding to any), `bias` is 0 on real keys and very negative on padding [rows, 1, 1, tokens]."""

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

    def __init__(self, model: Classifier, masked: float) -> None:
        super().__init__()
        self.model, self.masked = model, masked

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits [rows, labels] of int64 inputs [rows, tokens]."""
        rows, tokens = input_ids.shape
        mask = attention_mask.reshape(-1)
        real = mask.nonzero().squeeze(1)
        place = (mask.cumsum(0) - 1).clamp(min=0)
        bias = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * self.masked
        layout = _Layout(rows, tokens, real, place, bias)

        def flat(values: Tensor) -> Tensor:
            return values.reshape(-1)[real].unsqueeze(0)

        family = self.model.family
        ids = flat(input_ids)
        options = {"position_ids": (real % tokens).unsqueeze(0) + family.position_offset}
        if token_type_ids is not None:
            options["token_type_ids"] = flat(token_type_ids)
        states = self.model.encoder(
            input_ids=ids, attention_mask=torch.ones_like(ids), jouleserve_layout=layout, **options
        ).last_hidden_state
        logits: Tensor = self.model.head(self.model.pool(layout.pad(states[0]), attention_mask))
        return logits


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    jouleserve_layout: _Layout,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling + bias) v within each row; q, k, v and the result hold all real tokens as one row."""
    layout = jouleserve_layout
    heads, size = query.shape[1], query.shape[3]

    def in_rows(x: Tensor) -> Tensor:
        padded = layout.pad(x.transpose(1, 2).reshape(-1, heads * size))
        return padded.reshape(layout.rows, layout.tokens, heads, size).transpose(1, 2)  # type: ignore[arg-type]

    scores = torch.matmul(in_rows(query) * scaling, in_rows(key).transpose(2, 3)) + layout.bias
    mixed = torch.matmul(torch.softmax(scores, -1), in_rows(value)).transpose(1, 2)
    return mixed.reshape(-1, heads * size)[layout.real].reshape(1, -1, heads, size), None


def _no_mask(**_: Any) -> None:
    """The layout's bias masks; the encoder need not."""


AttentionInterface.register(RAGGED, _attention)
AttentionMaskInterface.register(RAGGED, _no_mask)
