from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.fairness import Costs, shapley, summary


def game(players: int, cost: dict[frozenset[int], float]) -> Costs:
    subsets = (frozenset(one) for size in range(players + 1) for one in itertools.combinations(range(players), size))
    return {subset: cost.get(subset, 0.0) for subset in subsets}


def test_the_glove_game_has_its_known_values() -> None:
    # One left glove (player 0), two right ones: a pair is worth 1.
    pairs = {frozenset({0, 1}): 1.0, frozenset({0, 2}): 1.0, frozenset({0, 1, 2}): 1.0}
    assert shapley(game(3, pairs), 3) == pytest.approx([2 / 3, 1 / 6, 1 / 6])


@given(st.lists(st.floats(0, 100), min_size=4, max_size=4), st.floats(0, 50))
def test_a_fixed_cost_is_shared_evenly_and_own_costs_are_each_ones_own(own: list[float], fixed: float) -> None:
    subsets = (frozenset(one) for size in range(1, 5) for one in itertools.combinations(range(4), size))
    costs = {subset: fixed + sum(own[one] for one in subset) for subset in subsets}
    assert shapley(game(4, costs), 4) == pytest.approx([cost + fixed / 4 for cost in own])


@given(st.lists(st.floats(0, 100), min_size=15, max_size=15))
def test_the_values_add_up_to_the_whole_cost(costs: list[float]) -> None:
    subsets = (frozenset(one) for size in range(1, 5) for one in itertools.combinations(range(4), size))
    whole = game(4, dict(zip(subsets, costs, strict=True)))
    assert sum(shapley(whole, 4)) == pytest.approx(whole[frozenset(range(4))], abs=1e-9)


def test_the_summary_gives_median_and_95th_percentile() -> None:
    assert summary([index / 100 for index in range(1, 101)]) == {"median": 0.505, "p95": 0.95}
