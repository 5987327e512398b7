"""What a recipe may say about dropping layers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from compile.specs.base import Strict

Choice = Literal["divergence", "top", "alternate", "greedy"]


class DropLayersSpec(Strict):
    """Which of a model's layers stay: named one by one (`layers`), or so many of them (`keep`), chosen by measuring."""

    layers: tuple[int, ...] | None = None
    """Indices of the layers that stay, rising from 0. Give either this or `keep`."""
    keep: int | None = Field(default=None, ge=0)
    """How many layers stay. With none a text is the mean of its embeddings: next to nothing to compute, and enough for
    many easy texts, so a good first variant of a cascade (train its embeddings: `freeze_embeddings: false`)."""
    choose: Choice = "divergence"
    """How the `keep` layers are found. `top` drops the last layers; `alternate` keeps evenly spaced ones, the last
    among them; `greedy` drops one layer after another, each time the one that is missed least; `divergence` takes the
    one of these three whose answers stay nearest to the uncut model's. Greedy runs the model about layers^2 / 2 times
    over the samples, the others once."""
    samples: int = Field(default=256, ge=16, le=65536)
    """Training texts (drawn by the recipe's seed) on which answers are compared."""
    temperature: float = Field(default=2.0, gt=0)
    """Logits are divided by it before they are compared: above 1, the order of the unlikely labels counts too."""

    @field_validator("layers")
    @classmethod
    def _rising(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (list(value) != sorted(set(value)) or min(value, default=0) < 0):
            raise ValueError("give the kept layers as rising indices from 0")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.layers is None) == (self.keep is None):
            raise ValueError("give either `layers` (which ones stay) or `keep` (how many stay)")
        return self
