"""The knapsack finds the best widths that fit; swaps within a layer never make the predicted loss worse."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.knapsack import TooDear, choose, choose_within

OPTIONS = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 12)), min_size=1, max_size=5
)  # (value, cost) of every option of a class
CLASSES = st.lists(OPTIONS, min_size=1, max_size=4)


def arrays(classes: list[list[tuple[int, int]]]) -> tuple[list[Any], list[Any]]:
    values = [np.array([value for value, _ in options], dtype=np.float64) for options in classes]
    return values, [np.array([cost for _, cost in options], dtype=np.int64) for options in classes]


def brute_force(classes: list[list[tuple[int, int]]], budget: float) -> int | None:
    fitting = [
        sum(value for value, _ in picks)
        for picks in itertools.product(*classes)
        if sum(cost for _, cost in picks) <= budget
    ]
    return max(fitting) if fitting else None


@settings(max_examples=150, deadline=None)
@given(classes=CLASSES, budget=st.integers(-1, 40))
def test_the_choice_is_as_good_as_trying_everything(classes: list[list[tuple[int, int]]], budget: int) -> None:
    values, costs = arrays(classes)
    best = brute_force(classes, budget)
    if best is None:
        with pytest.raises(TooDear, match=f"the budget is {budget}"):
            choose(values, costs, budget)
        return
    chosen = choose(values, costs, budget)
    assert sum(int(cost[at]) for cost, at in zip(costs, chosen, strict=True)) <= budget
    assert sum(value[at] for value, at in zip(values, chosen, strict=True)) == best


@settings(max_examples=100, deadline=None)
@given(classes=CLASSES, budget=st.integers(0, 40), offset=st.floats(-3, 0), scale=st.floats(1e-4, 1e3))
def test_real_costs_keep_the_budget_and_are_best_but_for_rounding(
    classes: list[list[tuple[int, int]]], budget: int, offset: float, scale: float
) -> None:
    values, costs = arrays(classes)
    real = [(cost + offset) * scale for cost in costs]
    limit = (budget + 0.5 + offset * len(classes)) * scale
    best = brute_force(classes, budget)
    if best is None:
        with pytest.raises(TooDear):
            choose_within(values, real, limit)
        return
    chosen = choose_within(values, real, limit)
    assert sum(cost[at] for cost, at in zip(real, chosen, strict=True)) <= limit + 1e-9 * scale
    # Half a unit to spare is far more than what rounding up loses.
    assert sum(value[at] for value, at in zip(values, chosen, strict=True)) == best


def test_a_width_that_is_narrower_and_dearer_is_never_taken() -> None:
    values, costs = [np.array([1.0, 2.0, 3.0])], [np.array([0.5, 0.9, 0.7])]
    assert choose_within(values, costs, 0.8) == (2,)
    assert choose_within(values, costs, 0.6) == (0,)
