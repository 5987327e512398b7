"""Ratios are of one round, and a target that is missed says so."""

from __future__ import annotations

import pytest

from loadtest.bench.plan import REALISTIC, Plan
from loadtest.bench.results import (
    AtRate,
    CacheRound,
    Load,
    Rest,
    Result,
    Round,
    against_best_peer,
    over_floor,
    spread,
)
from loadtest.bench.targets import Verdict, judge, missed
from loadtest.peers.ours import EDGE, HAPROXY


def load(
    name: str,
    clients: int,
    cpu: float,
    rate: float = 500.0,
    failures: dict[int, int] | None = None,
    floors: tuple[float, ...] = (2.0,),
) -> Load:
    ratios = [cpu / floor for floor in floors]
    bare = 80.0 if clients == 1 else None
    return Load(name, REALISTIC, clients, cpu, ratios, rate, 100.0, 120.0, 150.0, bare, 1000, failures or {})


def result(*rounds: Round) -> Result:
    return Result({}, Plan(clients=(1, 64)), (HAPROXY, EDGE), rounds=list(rounds))


def test_a_ratio_to_the_floor_is_that_of_every_slice() -> None:
    rounds = Round([load(EDGE, 64, 2.4, floors=(2.0, 2.4))]), Round([load(EDGE, 64, 2.2)])
    found = over_floor(result(*rounds), EDGE, REALISTIC, 64)
    assert found is not None
    assert (found.median, found.least, found.most) == pytest.approx((1.1, 1.0, 1.2))


def test_the_best_peer_may_be_another_in_every_round() -> None:
    rounds = (
        Round([load(EDGE, 64, 2.0), load("A", 64, 4.0), load("B", 64, 8.0)]),
        Round([load(EDGE, 64, 2.0), load("A", 64, 8.0), load("B", 64, 5.0)]),
    )
    found = against_best_peer(result(*rounds), EDGE, REALISTIC, 64, lambda one: one.cpu_seconds_per_1k, min)
    assert found is not None
    assert (found.least, found.most) == (0.4, 0.5)


def test_neither_ours_nor_a_peer_that_failed_requests_is_the_best_peer() -> None:
    loads = [load(EDGE, 64, 2.0), load(HAPROXY, 64, 1.0), load("A", 64, 1.0, failures={503: 9}), load("B", 64, 4.0)]
    found = against_best_peer(result(Round(loads)), EDGE, REALISTIC, 64, lambda one: one.cpu_seconds_per_1k, min)
    assert found is not None
    assert found.median == 0.5


def test_without_peers_there_is_nothing_to_compare_with() -> None:
    one = Round([load(EDGE, 64, 2.0)])
    assert against_best_peer(result(one), EDGE, REALISTIC, 64, lambda each: each.requests_per_second, max) is None


@pytest.mark.parametrize(
    ("reached", "at_most", "met"), [(1.2, True, True), (1.21, True, False), (1.2, False, True), (1.19, False, False)]
)
def test_a_target_is_met_up_to_its_limit(reached: float, at_most: bool, met: bool) -> None:
    verdict = Verdict("x", 1.2, spread([reached]), at_most)
    assert verdict.met is met
    assert ("MISSED" in str(verdict)) is not met


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    verdict = Verdict("x", 1.2, None)
    assert verdict.met is None
    assert "not measured" in str(verdict)
    assert missed([verdict]) == []


def whole(cpu: float = 2.1) -> Result:
    loads = [load(name, clients, cpu) for name in (HAPROXY, EDGE) for clients in (1, 64)]
    found = result(Round([*loads, load("A", 64, 4.0, rate=250.0)]))
    found.rests = [Rest(HAPROXY, 12, 9, 2.5, 900), Rest(EDGE, 1.2, 0.8, 0.2, 130)]
    found.rates = [AtRate(name, rate, 3.0, 1.2, 5, 9) for name in (HAPROXY, EDGE) for rate in (5.0, 50.0)]
    found.cache = [CacheRound(name, 2.0, 1.0, 0.5, 0.2, 0.6) for name in (HAPROXY, EDGE)]
    return found


def test_every_target_is_judged_once_and_a_good_run_meets_them_all() -> None:
    verdicts = judge(whole())
    assert len({one.name for one in verdicts}) == len(verdicts) == 26
    assert [str(one) for one in verdicts if one.met is not True] == []


def test_a_dear_run_misses_the_targets_of_load() -> None:
    names = [one.name for one in missed(judge(whole(cpu=6.0)))]
    assert any("x floor" in name for name in names)
    assert any("best peer" in name for name in names)
    assert not any("idle" in name for name in names)


def test_savings_below_the_hits_are_missed() -> None:
    found = whole()
    found.cache = [CacheRound(EDGE, 2.0, 1.2, 0.5, 0.2)]
    assert [one.name for one in missed(judge(found))] == [f"{EDGE}, repeated texts: CPU saved / share of hits"]
