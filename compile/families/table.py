"""What a family's table holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Axis = Literal[0, 1]


@dataclass(frozen=True)
class Projection:
    """A weight matrix inside a layer and the axis along which its heads or units lie (torch Linear: 0 = outputs)."""

    path: str
    axis: Axis


@dataclass(frozen=True)
class Family:
    """Module paths and configuration keys of one architecture; no logic."""

    model_type: str
    encoder_class: str
    """Class name in transformers."""
    encoder_options: tuple[tuple[str, object], ...]
    """Constructor options of the bare encoder."""
    embeddings: str
    """Path of the module with every embedding table."""
    layers: str
    """Path of the list of layers."""
    layer_count_key: str
    hidden_size_key: str
    heads_key: str
    position_limit_key: str
    position_offset: int
    """Rows of the position table that no token uses (OPT has 2)."""
    token_types: bool
    """Whether pairs are told apart by token_type_ids."""
    heads: tuple[Projection, ...]
    """Matrices that lose a slice when a head leaves."""
    units: tuple[Projection, ...]
    """Matrices that lose a row or column when a feed-forward unit leaves."""
    dropout_keys: tuple[str, ...]
