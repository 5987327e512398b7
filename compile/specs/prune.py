"""What a recipe may say about cutting heads and units, and about mending what was cut."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from compile.specs.base import Strict

KeptShare = Annotated[float, Field(gt=0, le=1)]


class PruneUnitsSpec(Strict):
    """How far attention heads and feed-forward units are cut: to a share of the cost, or to shares of their number.

    Shares count from the layers at full width, also where an earlier pass cut some: 0.8 and then 0.6 end at 0.6.
    """

    cost_share: KeptShare | None = None
    """CPU time that may be left, as a share of the same layers uncut, by the measured table of widths (`time_widths`);
    heads and units compete for it. Give either this or `heads` and `units`."""
    heads: KeptShare | None = None
    """Share of all attention heads that stay; the rest are cut wherever they are worth least."""
    units: KeptShare | None = None
    """Share of all feed-forward units that stay."""
    samples: int = Field(default=256, ge=8, le=65536)
    """Training texts (drawn by the recipe's seed) on which heads and units are scored."""
    unit_group: int = Field(default=32, ge=1, le=1024)
    """A layer's units stay in multiples of this: int8 kernels work in blocks, and an odd width can cost more."""
    rounds: int = Field(default=4, ge=1, le=64)
    """Cut in so many steps, scoring anew before each: what a head is worth changes as others leave."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.cost_share is None) == (self.heads is None and self.units is None):
            raise ValueError("give either `cost_share`, or `heads` and/or `units`")
        return self


class ReconstructSpec(Strict):
    """How the output projections of a cut model are fitted to the uncut model's outputs."""

    samples: int = Field(default=512, ge=16, le=65536)
    """Training texts (drawn by the recipe's seed) on which projections are fitted."""
    ridge: float = Field(default=1e-2, gt=0, le=100)
    """Pull towards the old weights, as a share of the inputs' mean square: larger changes less."""
    tolerance: float = Field(default=0.01, ge=0, le=1)
    """Validation divergence from the uncut model may end above what it was by at most this share of itself; a layer
    whose fit takes it there keeps its old weights."""


class LowRankSpec(Strict):
    """Where projections are split into two narrower ones."""

    cost_share: KeptShare = 0.9
    """A split is used only where the pair measures at most this share of the whole projection's CPU time."""
    energy: KeptShare = 0.99
    """Share of a projection's output energy on calibration texts that its factors must keep."""
    samples: int = Field(default=256, ge=16, le=65536)
    """Training texts (drawn by the recipe's seed) on which the energy is measured."""
