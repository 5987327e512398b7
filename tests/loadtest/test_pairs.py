"""Two kinds of slices in turns: the ratio of their percentiles and its interval."""

from __future__ import annotations

import random

import pytest

from loadtest.open_loop import Outcome
from loadtest.pairs import Part, interval, paired, ratio_of, typical_ratio


def test_requests_belong_to_the_slice_that_they_were_sent_in() -> None:
    parts = [Part(0.0, 1.98, True, 0), Part(2.0, 3.98, False, 0)]
    sent = [(1.0, 0.010, 200), (1.99, 0.5, 200), (2.5, 0.020, 200), (3.0, 0.9, 503), (-1.0, 0.9, 200)]
    outcomes = [Outcome(at, latency, status) for at, latency, status in sent]
    assert paired(outcomes, parts) == [([10.0], [20.0])]


def test_the_interval_of_equal_sides_holds_one_and_of_others_does_not() -> None:
    values = [float(n % 100 + 1) for n in range(1000)]
    equal = [(values, values)] * 8
    assert ratio_of(equal) == 1
    assert interval(equal) == pytest.approx((1, 1))
    assert interval([(values, [2 * value for value in values])] * 8)[1] < 0.6


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
