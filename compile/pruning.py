"""Which heads and units stay: their scores against what they cost, then swaps within each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compile.knapsack import Floats, Ints, choose, choose_within
from compile.measure.widths import WidthTable
from compile.scoring import Gradients, rearranged


@dataclass(frozen=True)
class Kept:
    """Per layer the rising indices of the heads and units that stay."""

    heads: tuple[tuple[int, ...], ...]
    units: tuple[tuple[int, ...], ...]


def within_cost(gradients: Gradients, table: WidthTable, seconds: float, unit_group: int) -> Kept:
    """The heads and units worth most whose layers cost at most `seconds` by the table; raises TooDear if none do.

    `seconds` covers the whole model, its fixed part included (CPU-seconds per 1,000 texts).
    """
    head_counts, unit_counts = _offered(gradients, unit_group)
    values = _worth(gradients.head_scores, head_counts) + _worth(gradients.unit_scores, unit_counts)
    costs = [np.array([table.heads.at(n) for n in counts]) for counts in head_counts]
    costs += [np.array([table.units.at(n) for n in counts]) for counts in unit_counts]
    left = seconds - table.fixed_seconds - table.layer_seconds * len(head_counts)
    chosen = choose_within(values, costs, left)
    layers = len(head_counts)
    return Kept(
        _best(gradients.heads, [counts[at] for counts, at in zip(head_counts, chosen[:layers], strict=True)]),
        _best(gradients.units, [counts[at] for counts, at in zip(unit_counts, chosen[layers:], strict=True)]),
    )


def within_numbers(gradients: Gradients, heads: int | None, units: int | None, unit_group: int) -> Kept:
    """The heads and units worth most, at most so many of each in all layers together; None keeps all of a kind.

    Raises TooDear where there would be less than one head or group of units a layer.
    """
    head_counts, unit_counts = _offered(gradients, unit_group)
    return Kept(
        _best(gradients.heads, _spread(gradients.head_scores, head_counts, heads)),
        _best(gradients.units, _spread(gradients.unit_scores, unit_counts, units)),
    )


def _offered(gradients: Gradients, unit_group: int) -> tuple[list[Ints], list[Ints]]:
    """Counts that each layer may keep: any number of heads, units in whole groups or all of them."""
    heads = [np.arange(1, layer.shape[1] + 1) for layer in gradients.heads]
    units = [np.arange(unit_group, layer.shape[1], unit_group) for layer in gradients.units]
    return heads, [np.append(few, layer.shape[1]) for few, layer in zip(units, gradients.units, strict=True)]


def _worth(scores: Sequence[Floats], counts: Sequence[Ints]) -> list[Floats]:
    """What the best `n` of each layer score together, for every offered `n`."""
    summed = [np.cumsum(np.sort(layer)[::-1]) for layer in scores]
    return [layer[offered - 1] for layer, offered in zip(summed, counts, strict=True)]


def _spread(scores: Sequence[Floats], counts: Sequence[Ints], number: int | None) -> list[int]:
    if number is None:
        return [int(offered[-1]) for offered in counts]
    chosen = choose(_worth(scores, counts), counts, number)
    return [int(offered[at]) for offered, at in zip(counts, chosen, strict=True)]


def _best(gradients: Sequence[Floats], counts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    return tuple(_best_of(layer, count) for layer, count in zip(gradients, counts, strict=True))


def _best_of(gradients: Floats, count: int) -> tuple[int, ...]:
    order = np.argsort(-np.square(gradients).sum(0), kind="stable")
    return rearranged(gradients, sorted(int(i) for i in order[:count]))
