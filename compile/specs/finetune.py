"""What a recipe may say about training on the labels."""

from __future__ import annotations

from pydantic import Field

from compile.specs.base import Precision, Share, Strict


class FinetuneSpec(Strict):
    """How a model is trained on the labelled rows: the teacher at first, a cut model where a variant asks for it."""

    epochs: int = Field(default=3, ge=1, le=100)
    batch_rows: int = Field(default=32, ge=1, le=1024)
    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    head_learning_rate_factor: float = Field(default=10.0, gt=0)
    """The head learns this many times faster than the encoder."""
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_share: Share = 0.1
    dropout: float = Field(default=0.0, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Ignored where labels are real numbers."""
    precision: Precision = "float32"
    freeze_embeddings: bool = True
    """Word, position and type tables stay as they are: they hold half of the parameters and learn little."""
    freeze_layers: int = Field(default=0, ge=0)
    """So many layers, counted from the input, stay as they are."""
