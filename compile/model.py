"""The torch model: an encoder of a known family, pooling, a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import transformers
from torch import Tensor, nn

from compile.errors import BaseError
from compile.families.table import Family


class Classifier(nn.Module):
    """Encoder, pooling (`mean` over real tokens, the first: `cls`, the `last`) and a linear head over `labels` classes.

    Raises BaseError for a pooling that the family does not allow: a decoder's first token has seen no other.
    """

    def __init__(self, family: Family, config: Any, pooling: str, labels: int) -> None:
        super().__init__()
        if pooling not in family.poolings:
            remedy = f"use one of {list(family.poolings)}"
            raise BaseError("pooling", f"'{pooling}' says nothing of a text in {family.model_type}", remedy)
        encoder_class = getattr(transformers, family.encoder_class)
        self.family, self.config, self.pooling, self.labels = family, config, pooling, labels
        self.encoder: nn.Module = encoder_class(config, **dict(family.encoder_options))
        self.head = nn.Linear(getattr(config, family.output_size_key), labels)
        self.head_size = family.head_size(config.to_dict())
        self.ranks: dict[str, int] = {}
        """Projections that are products of two (`compile.factors`), by `layer.path`: numbers between the two."""
        self.is_cut = False
        """Whether heads or units were cut away (`compile.surgery.cut`): layers then differ from the configuration."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [rows, labels] and pooled vectors [rows, hidden] of int64 inputs [rows, tokens]."""
        options = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **options).last_hidden_state
        pooled = self.pool(states, attention_mask)
        return self.head(pooled), pooled

    def pool(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """One vector a text [rows, hidden] of token states [rows, tokens, hidden]."""
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "last":
            last = (attention_mask.sum(1, keepdim=True) - 1).clamp(min=0).unsqueeze(-1)
            return states.gather(1, last.expand(-1, -1, states.shape[-1])).squeeze(1)
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1.0)

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's layers, first to last."""
        return cast(nn.ModuleList, self.encoder.get_submodule(self.family.layers))

    @property
    def layer_count(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    def keep_layers(self, kept: Sequence[int]) -> None:
        """Drop every layer that is not in `kept` (rising indices)."""
        if self.family.position_bias is not None and kept and kept[0] != 0 and not self.is_cut:
            self._move_position_bias(self.family.position_bias, self.layers[kept[0]])
        parent, _, name = self.family.layers.rpartition(".")
        layers = nn.ModuleList(self.layers[i] for i in kept)
        setattr(self.encoder.get_submodule(parent), name, layers)
        setattr(self.config, self.family.layer_count_key, len(kept))

    def _move_position_bias(self, path: str, layer: nn.Module) -> None:
        """Give the table that the first layer holds for all to the layer that comes to be the first."""
        parent, _, name = path.rpartition(".")
        taker = layer.get_submodule(parent)
        setattr(taker, name, self.layers[0].get_submodule(path))
        cast(Any, taker).has_relative_attention_bias = True

    def set_dropout(self, probability: float) -> None:
        """Set every dropout of the encoder; 0 is a good deal faster on a CPU."""
        for module in self.encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability
            elif isinstance(getattr(module, "dropout", None), float):
                cast(Any, module).dropout = probability

    def freeze(self, embeddings: bool, layers: int) -> None:
        """Stop training the embedding tables and the first `layers` layers."""
        if embeddings:
            for path in self.family.embeddings:
                self.encoder.get_submodule(path).requires_grad_(False)
        for layer in self.layers[:layers]:
            layer.requires_grad_(False)

    def attend_with(self, implementation: str) -> None:
        """Choose the registered attention implementation."""
        cast(Any, self.encoder).set_attn_implementation(implementation)
