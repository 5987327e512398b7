"""Picks one width for every block so that what is kept is worth most within a cost (multiple-choice knapsack)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_RESOLUTION = 8192


class TooDear(ValueError):
    """Even the cheapest choice costs more than the budget."""


def choose(values: Sequence[Floats], costs: Sequence[Ints], budget: int) -> tuple[int, ...]:
    """One option of every class with the largest sum of values whose costs sum to at most `budget`.

    `values[c][o]` and `costs[c][o]` (whole, not negative) belong to option `o` of class `c`. Exact, by dynamic
    programming over the spent cost; among equals the option named first wins. Raises TooDear if nothing fits.
    """
    best = np.zeros(max(budget, -1) + 1)
    picked: list[Ints] = []
    for value, cost in zip(values, costs, strict=True):
        following = np.full_like(best, -np.inf)
        option_at = np.full(best.shape, -1, dtype=np.int64)
        for option, (gain, spent) in enumerate(zip(value, cost, strict=True)):
            if spent >= len(best):
                continue
            reached = best[: len(best) - spent] + gain
            better = reached > following[spent:]
            following[spent:][better] = reached[better]
            option_at[spent:][better] = option
        best = following
        picked.append(option_at)
    if not len(best) or not np.isfinite(best[-1]):
        least = sum(int(np.min(cost)) for cost in costs)
        raise TooDear(f"the cheapest choice costs {least}, the budget is {budget}")
    return _walk_back(picked, costs, len(best) - 1)


def _walk_back(picked: Sequence[Ints], costs: Sequence[Ints], left: int) -> tuple[int, ...]:
    chosen: list[int] = []
    for option_at, cost in zip(reversed(picked), reversed(costs), strict=True):
        option = int(option_at[left])
        chosen.append(option)
        left -= int(cost[option])
    return tuple(reversed(chosen))


def choose_within(values: Sequence[Floats], costs: Sequence[Floats], budget: float) -> tuple[int, ...]:
    """As `choose`, for costs that are real numbers and may be negative (a narrower block that saves).

    Costs count from each class's cheapest option in steps of 1/8192 of what is left to spend, rounded up, so the budget
    always holds; what rounding leaves unspent, below one step a class, goes to the options it can still pay for. Raises
    TooDear if nothing fits.
    """
    floors = [float(cost.min()) for cost in costs]
    spare = budget - sum(floors)
    if spare < 0:
        raise TooDear(f"the cheapest choice costs {sum(floors):.6g}, the budget is {budget:.6g}")
    most = max(float(cost.max()) - floor for cost, floor in zip(costs, floors, strict=True))
    step = max(spare / _RESOLUTION, most * 1e-12, 1e-300)
    whole = [
        np.ceil((cost - floor) / step - 1e-9).clip(max=_RESOLUTION + 1).astype(np.int64)
        for cost, floor in zip(costs, floors, strict=True)
    ]
    return _spend_rest(values, costs, choose(values, whole, _RESOLUTION), budget + 1e-9 * step)


def _spend_rest(
    values: Sequence[Floats], costs: Sequence[Floats], chosen: Sequence[int], budget: float
) -> tuple[int, ...]:
    """Exchange single options for better ones as long as the real costs allow, the largest gain first."""
    picks = list(chosen)
    while True:
        left = budget - sum(float(cost[at]) for cost, at in zip(costs, picks, strict=True))
        upgrades = [
            (float(values[of][option] - values[of][at]), of, option)
            for of, at in enumerate(picks)
            for option in range(len(values[of]))
            if values[of][option] > values[of][at] and costs[of][option] - costs[of][at] <= left
        ]
        if not upgrades:
            return tuple(picks)
        _, of, option = max(upgrades, key=lambda upgrade: (upgrade[0], -upgrade[1], -upgrade[2]))
        picks[of] = option
