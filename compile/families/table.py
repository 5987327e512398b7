"""What a family's table holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Axis = Literal[0, 1]
_RELATIVE_POSITIONS = 512
"""Tokens that a model without a position table is served with: relative distances have no end, its training had."""


@dataclass(frozen=True)
class Projection:
    """A weight matrix inside a layer and the axis of the stored weight along which its heads or units lie."""

    path: str
    axis: Axis
    """Torch's `Linear` stores [outputs, inputs], transformers' `Conv1D` [inputs, outputs]."""
    kind: Literal["linear", "conv1d"] = "linear"
    parts: int = 1
    """So many matrices lie side by side along `axis` (3: query, key, value), each with all heads: a head of size d at
    index h leaves at p * heads * d + h * d for every part p."""

    @property
    def makes(self) -> bool:
        """Whether heads or units are what it puts out (its bias, if any, loses the same slice), not what it reads."""
        return self.axis == (0 if self.kind == "linear" else 1)


@dataclass(frozen=True)
class Family:
    """Module paths and configuration keys of one architecture."""

    model_type: str
    encoder_class: str
    """Class name in transformers."""
    encoder_options: tuple[tuple[str, object], ...]
    """Constructor options of the bare encoder."""
    embeddings: tuple[str, ...]
    """Paths of the modules that hold the embedding tables."""
    layers: str
    """Path of the list of layers."""
    layer_count_key: str
    hidden_size_key: str
    output_size_key: str
    """Width of the last hidden state; other than the hidden size where a projection follows the last layer."""
    heads_key: str
    units_key: str
    head_size_key: str | None
    """None where a head's size is the hidden size over the number of heads."""
    position_limit_key: str | None
    """None where positions are relative."""
    positions_after_padding: bool
    """The first token's position is the padding token's number plus one, not 0."""
    token_types: bool
    """Whether pairs are told apart by token_type_ids."""
    causal: bool
    """Whether a token sees only those before it."""
    poolings: tuple[str, ...]
    """Ways to make one vector of a text that the architecture allows, the usual one first."""
    attention: str
    """Path of a layer's attention module."""
    head_counts: tuple[str, ...]
    """Attributes of the attention module that hold its number of heads."""
    head_widths: tuple[str, ...]
    """Attributes of the attention module that hold its number of heads times a head's size."""
    heads: tuple[Projection, ...]
    """Matrices that lose a slice when a head leaves; the last one reads the heads."""
    units: tuple[Projection, ...]
    """Matrices that lose a row or column when a feed-forward unit leaves; the last one reads the units. A path that a
    layer does not have belongs to another flavour of the family, see `present`."""
    position_bias: str | None = None
    """Path, in the first layer, of a table [distances, heads] of attention biases that all layers share."""

    @property
    def heads_gate(self) -> Projection:
        """The projection whose input is the heads' output: a gate that scores heads multiplies it."""
        return self.heads[-1]

    @property
    def units_gate(self) -> Projection:
        """The projection whose input is the feed-forward units: a gate that scores units multiplies it."""
        return self.units[-1]

    def first_position(self, config: Mapping[str, Any]) -> int:
        """Number of a text's first position under a configuration (config.json as a mapping)."""
        return int(config.get("pad_token_id") or 0) + 1 if self.positions_after_padding else 0

    def position_limit(self, config: Mapping[str, Any]) -> int:
        """Longest text in tokens under a configuration (config.json as a mapping)."""
        if self.position_limit_key is None:
            return int(config.get("n_positions") or _RELATIVE_POSITIONS)
        return int(config[self.position_limit_key]) - self.first_position(config)

    def head_size(self, config: Mapping[str, Any]) -> int:
        """Channels of one head under a configuration."""
        if self.head_size_key is not None:
            return int(config[self.head_size_key])
        return int(config[self.hidden_size_key]) // int(config[self.heads_key])

    def input_names(self, pair: bool) -> tuple[str, ...]:
        """Names of a graph's inputs, in order."""
        types = ("token_type_ids",) if pair and self.token_types else ()
        return ("input_ids", "attention_mask", *types)


def present(layer: nn.Module, projections: Sequence[Projection]) -> list[tuple[Projection, nn.Module]]:
    """The projections that a layer has, with their modules."""
    modules = dict(layer.named_modules())
    return [(one, modules[one.path]) for one in projections if one.path in modules]
