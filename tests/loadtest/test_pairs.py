"""Two kinds of slices in turns: the ratio of their percentiles and its interval."""

from __future__ import annotations

import random

import pytest

from loadtest.open_loop import Outcome
from loadtest.pairs import Part, interval, paired, ratio_of, typical_ratio


def test_a_request_belongs_to_the_slice_that_it_was_sent_in_or_to_none() -> None:
    parts = [
        Part(10.0, 11.9, True, 0),
        Part(12.0, 13.9, False, 0),
        Part(14.0, 15.9, False, 1),
        Part(16.0, 17.9, True, 1),
    ]
    sent = {9.0: 1, 10.5: 2, 11.95: 3, 12.5: 4, 14.5: 5, 16.5: 6, 17.99: 7}
    outcomes = [Outcome(when, milliseconds / 1000, 200) for when, milliseconds in sent.items()]
    assert paired([*outcomes, Outcome(16.6, 1.0, 429)], parts) == [([2], [4]), ([6], [5])]


def test_the_slowest_percents_are_compared_by_pairs() -> None:
    same = [([float(i) for i in range(100)],) * 2 for _ in range(10)]
    assert ratio_of(same) == 1
    assert interval(same) == (1, 1)
    slower = [([2.0 * i for i in range(100)], [float(i) for i in range(100)]) for _ in range(10)]
    assert ratio_of(slower) == 2


def test_the_interval_covers_the_ratio_that_slices_of_their_own_pace_hide() -> None:
    chance = random.Random(3)
    pairs = []
    for _ in range(30):
        pace = chance.lognormvariate(0, 0.5)
        beside, alone = ([scale * pace * chance.expovariate(1) for _ in range(300)] for scale in (1.2, 1.0))
        pairs.append((beside, alone))
    low, high = interval(pairs)
    assert low < 1.2 < high
    assert low < ratio_of(pairs) < high


def test_a_slice_that_something_else_disturbed_does_not_decide_the_typical_ratio() -> None:
    values = [float(n % 100 + 1) for n in range(1000)]
    pairs = [([1.2 * value for value in values], values)] * 9 + [(values, [50 * value for value in values])]
    assert ratio_of(pairs) < 0.1
    assert typical_ratio(pairs) == (pytest.approx(1.2), pytest.approx(1.2), pytest.approx(1.2))
