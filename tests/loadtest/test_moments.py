"""Moments at which something happened or not: percentiles with and without it, and how sure their ratio is."""

from __future__ import annotations

import random

import pytest

from loadtest.moments import Moment, percentiles, ratio, sort
from loadtest.open_loop import Outcome

SLOT_S = 1.0
GO_S = 0.1


def in_turns(pairs: int, seed: int = 1) -> list[Moment]:
    chance, found = random.Random(seed), list[Moment]()
    for pair in range(pairs):
        for happened in chance.sample((True, False), 2):
            begin_s = len(found) * SLOT_S
            found.append(Moment(begin_s, begin_s + GO_S, begin_s + SLOT_S, happened, pair))
    return found


def load(moments: list[Moment], rate: int, slowing: float, seed: int = 2) -> list[Outcome]:
    """Latencies of 1 to 5 ms and more, `slowing` times as long where it happens; every other second the machine is
    half as fast, whatever happens."""
    chance, found = random.Random(seed), list[Outcome]()
    for moment in moments:
        pace = chance.choice((1.0, 2.0))
        for n in range(rate):
            sent_s = moment.begin_s + n / rate * SLOT_S
            hit = moment.happened and sent_s <= moment.end_s
            found.append(Outcome(sent_s, 0.001 * pace * (1 + chance.expovariate(1)) * (slowing if hit else 1.0), 200))
    return found


def test_a_request_is_of_a_moment_if_it_was_under_way_then() -> None:
    moments = [Moment(1.0, 1.1, 2.0, True, 0), Moment(2.0, 2.1, 3.0, False, 0)]
    sent = {
        0.5: 0.2,  # before all
        0.95: 0.1,  # under way as the first began
        1.05: 0.3,  # sent in the first
        1.5: 0.4,  # beside
        1.9: 0.5,  # under way as the second began
        2.6: 0.6,  # beside
        3.1: 0.7,  # after all
    }
    found = sort([*(Outcome(when, took, 200) for when, took in sent.items()), Outcome(1.6, 9.0, 503)], moments)
    assert list(found.latency_ms) == [100, 300, 400, 500, 600]
    assert found.within == 3
    # Of five in two seconds 1.5 are of a moment, so one a second is beside: two of weight 0.5.
    assert list(found.with_it) == [1, 1, 0.5, 0, 0.5]
    assert list(found.without_it) == [0, 0, 0.5, 1, 0.5]


def test_what_makes_no_difference_is_sure_to_make_none_though_seconds_differ_twofold() -> None:
    moments = in_turns(150)
    found, low, high = ratio(sort(load(moments, 200, slowing=1.0), moments), 0.99)
    assert low <= 1 <= high
    assert low <= found <= high
    assert high - low < 0.03


def test_what_slows_a_tenth_of_the_time_is_seen_in_the_slowest_percent() -> None:
    moments = in_turns(150)
    found = sort(load(moments, 200, slowing=3.0), moments)
    slowest, alone = percentiles(found, 0.99)
    assert slowest / alone == pytest.approx(ratio(found, 0.99)[0])
    assert ratio(found, 0.99)[1] > 1.2
    assert ratio(found, 0.5)[0] < 1.1


def test_with_and_without_it_are_weighed_as_one_moment_a_second() -> None:
    moments = in_turns(10)
    found = sort(load(moments, 50, slowing=1.0), moments)
    assert found.with_it.sum() == pytest.approx(50)
    assert found.without_it.sum() == pytest.approx(50)
