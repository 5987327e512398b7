"""What a layer costs at other widths: a measured table, and the cost of a whole model that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from compile.surgery import Widths

_HEAD_SHARES = (0.0, 0.25, 0.5, 0.75)
_UNIT_SHARES = (0.02, 0.125, 0.25, 0.5, 0.75)
_UNIT_BLOCK = 32
# Bounds of what timing noise may claim: a layer's least share of an even split, the most of it that widths can save.
_LEAST_SHARE, _MOST_SAVED = 0.1, 0.95


@dataclass(frozen=True)
class Costs:
    """CPU-seconds per 1,000 texts of one layer, relative to its full width (0 there), at rising counts."""

    counts: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, count: float) -> float:
        """The cost at `count`, between measured counts by straight lines; the least measured one bounds from below."""
        return float(np.interp(count, self.counts, self.seconds))


@dataclass(frozen=True)
class WidthTable:
    """CPU time by width, in CPU-seconds per 1,000 texts of the served lengths, one thread."""

    fixed_seconds: float
    """Everything outside the layers: embeddings, pooling, head."""
    layer_seconds: float
    """One layer at full width."""
    heads: Costs
    units: Costs

    def seconds(self, widths: Widths) -> float:
        """A model's predicted cost."""
        saved = sum(self.heads.at(n) for n in widths.heads) + sum(self.units.at(n) for n in widths.units)
        return self.fixed_seconds + self.layer_seconds * len(widths.heads) + saved

    def share(self, widths: Widths) -> float:
        """A model's predicted cost over that of the same layers at full width."""
        layers = len(widths.heads)
        full = Widths((self.heads.counts[-1],) * layers, (self.units.counts[-1],) * layers)
        return self.seconds(widths) / self.seconds(full)

    def to_plain(self) -> dict[str, Any]:
        """As plain data, see `from_plain`."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> WidthTable:
        """Read back what `to_plain` gave."""
        heads, units = (Costs(tuple(data[k]["counts"]), tuple(data[k]["seconds"])) for k in ("heads", "units"))
        return cls(data["fixed_seconds"], data["layer_seconds"], heads, units)


def measured_counts(heads: int, units: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Head and unit counts worth measuring below the full ones, rising."""
    few_heads = {max(1, round(share * heads)) for share in _HEAD_SHARES}
    few_units = {max(1, round(share * units / _UNIT_BLOCK)) * _UNIT_BLOCK for share in _UNIT_SHARES}
    return tuple(sorted(n for n in few_heads if n < heads)), tuple(sorted(n for n in few_units if n < units))


def table_of(
    seconds: Mapping[Widths, float], full: Widths, layers: int, head_counts: Sequence[int], unit_counts: Sequence[int]
) -> WidthTable:
    """The table from the cost of slices: one layer and `layers` layers at full width, and slices cut alike everywhere.

    `full` is one layer's width; a slice's key holds every layer's.
    """
    head_count, unit_count = full.heads[0], full.units[0]
    whole = seconds[Widths(full.heads * layers, full.units * layers)]
    # With a single layer it and what surrounds it cannot be told apart, nor need they be.
    layer = (whole - seconds[full]) / (layers - 1) if layers > 1 else whole
    # A layer too small to be timed must not come out as free, nor as dearer than all there is.
    layer = min(max(layer, _LEAST_SHARE * whole / layers), whole / layers)
    heads = [(seconds[Widths((n,) * layers, full.units * layers)] - whole) / layers for n in head_counts]
    units = [(seconds[Widths(full.heads * layers, (n,) * layers)] - whole) / layers for n in unit_counts]
    saved = -min([0.0, *heads]) - min([0.0, *units])
    scale = min(1.0, _MOST_SAVED * layer / saved) if saved > 0 else 1.0
    return WidthTable(
        whole - layers * layer,
        layer,
        Costs((*head_counts, head_count), (*(scale * spent for spent in heads), 0.0)),
        Costs((*unit_counts, unit_count), (*(scale * spent for spent in units), 0.0)),
    )
