from __future__ import annotations

import json
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.attribution import DomainEnergy, Window, attribute
from energy.domains import Domain
from energy.ledger import ENERGY_BOUNDS_JOULES, Account, Conservation, Ledger, LedgerError

CPU = Domain("package", "package-0", "rapl")
CORE = Domain("core", "package-0", "rapl", overlaps=True)
ALICE = Account("intents", "full", "full", "strict", "ok")
BOB = Account("intents", "lite", "cascade", "eco", "cached")
AMOUNT = st.integers(0, 10**10)

entries = st.tuples(AMOUNT, AMOUNT, AMOUNT, AMOUNT, AMOUNT, AMOUNT, st.none() | st.floats(0, 900))


def booked(rows: list[tuple[int, int, int, int, int, int, float | None]]) -> Ledger:
    ledger = Ledger()
    for energy_uj, idle_uj, busy, serving, alice, bob, grams in rows:
        ledger.meter({CPU: energy_uj, CORE: energy_uj // 2})
        domains = [DomainEnergy(CPU, energy_uj, idle_uj), DomainEnergy(CORE, energy_uj // 2, idle_uj)]
        ledger.settle(attribute(Window(domains, busy, serving, {ALICE: alice, BOB: bob})), grams)
        ledger.observe(BOB, energy_uj / 1e6, 2)
        ledger.avoid("cache", energy_uj // 3)
    return ledger


@given(st.lists(entries, max_size=8))
def test_the_books_balance_and_survive_json(rows: list[tuple[int, int, int, int, int, int, float | None]]) -> None:
    ledger = booked(rows)
    law = ledger.conservation()
    assert law.measured_uj == sum(row[0] for row in rows)
    assert law.measured_uj == law.attributed_uj + law.idle_uj + law.overhead_uj + law.other_uj
    assert law.error_ratio == 0.0
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert again == ledger
    assert [domain.overlaps for domain in again.metered_uj] == [domain.overlaps for domain in ledger.metered_uj]


def test_joules_that_went_missing_between_meter_and_books_show_as_an_error() -> None:
    ledger = booked([(1000, 0, 10, 10, 5, 5, None)])
    ledger.meter({CPU: 10})
    assert ledger.conservation().error_ratio == pytest.approx(10 / 1010)
    assert ledger.conservation(pending_uj=10).error_ratio == 0.0


def test_a_window_that_can_never_be_settled_is_booked_to_nobody() -> None:
    ledger = booked([(1000, 0, 10, 10, 5, 5, None)])
    ledger.meter({CPU: 10})
    ledger.lose(10)
    assert ledger.other_uj["lost_at_restart"] == 10
    assert ledger.conservation().error_ratio == 0.0


def test_a_mark_gives_the_law_for_what_came_since() -> None:
    ledger = booked([(1000, 100, 10, 10, 5, 5, None)])
    mark = ledger.conservation().to_mark()
    ledger.meter({CPU: 500})
    ledger.settle(attribute(Window([DomainEnergy(CPU, 500, 200)], 10, 10, {ALICE: 10})), None)
    since = ledger.conservation().since(Conservation.from_mark(mark))
    assert (since.measured_uj, since.attributed_uj, since.idle_uj, since.error_ratio) == (500, 300, 200, 0.0)


@pytest.mark.parametrize("later", range(5))
def test_a_mark_that_is_ahead_of_the_books_is_refused_and_nothing_negative_shown(later: int) -> None:
    now = booked([(1000, 100, 10, 10, 5, 5, None)]).conservation()
    ahead = [int(part) + (index == later) for index, part in enumerate(now.to_mark().split("."))]
    with pytest.raises(LedgerError, match="take a new mark"):
        now.since(Conservation(*ahead))


@pytest.mark.parametrize("mark", ["", "1.2.3", "a.b.c.d.e.f", "1.1.1.1.1.-1", "1.1.1.1.1.2"])
def test_something_that_is_no_mark_is_refused(mark: str) -> None:
    with pytest.raises(LedgerError, match="mark"):
        Conservation.from_mark(mark)


def test_grams_take_the_intensity_of_their_window_and_none_without_one() -> None:
    hour_of_a_kilowatt_uj = 3_600_000 * 10**6
    ledger = booked([(hour_of_a_kilowatt_uj, 0, 10, 10, 10, 0, 300.0)])
    assert ledger.grams["attributed", "intents", "full"] == pytest.approx(300)
    before = dict(ledger.grams)
    ledger.settle(attribute(Window([DomainEnergy(CPU, 10**9, 0)], 1, 1, {ALICE: 1})), None)
    assert ledger.grams == before
    assert booked([(10**9, 0, 1, 1, 1, 0, None)]).grams == {}


def test_grams_of_late_records_are_the_services_and_those_of_other_programs_are_not() -> None:
    ledger = Ledger()
    ledger.settle(attribute(Window([DomainEnergy(CPU, 3_600_000 * 10**6, 0)], 10, 7, {ALICE: 3}, 2)), 100.0)
    by_scope = {scope: round(grams, 6) for (scope, _, _), grams in ledger.grams.items()}
    assert by_scope == {"idle": 0, "attributed": 30, "late_record": 20, "overhead": 20, "other": 30}


def test_joules_of_late_records_are_the_services_and_those_of_other_programs_are_not() -> None:
    ledger = Ledger()
    ledger.settle(attribute(Window([DomainEnergy(CPU, 1100, 100)], 10, 7, {ALICE: 3}, 2)), None)
    ledger.lose(7)
    assert ledger.other_uj == {"late_record": 200, "other_processes": 300, "lost_at_restart": 7}
    assert ledger.service_uj() == 100 + 300 + 200 + 200


def test_the_request_energy_histogram_sums_to_the_attributed_energy() -> None:
    ledger = booked([(10_000, 100, 100, 80, 30, 20, None), (77_777, 100, 100, 80, 11, 22, None)])
    assert sum(h.sum_uj for h in ledger.request_energy.values()) == ledger.conservation().attributed_uj
    counts = ledger.request_energy["intents", "lite", "eco"].counts
    assert counts[bisect_left(ENERGY_BOUNDS_JOULES, 0.01)] == 2
    assert sum(counts) == 4


def test_the_histogram_covers_a_tenth_of_a_millijoule_to_a_kilojoule() -> None:
    assert (ENERGY_BOUNDS_JOULES[0], ENERGY_BOUNDS_JOULES[-1], len(ENERGY_BOUNDS_JOULES)) == (1e-4, 1e3, 22)
    assert list(ENERGY_BOUNDS_JOULES) == sorted(ENERGY_BOUNDS_JOULES)


def test_requests_of_a_release_that_did_not_tell_classes_apart_stay_in_the_histogram() -> None:
    tree = booked([(10_000, 100, 100, 80, 30, 20, None)]).to_json()
    tree["request_energy"] = [[model, variant, *rest] for model, variant, _, *rest in tree["request_energy"]]
    found = Ledger.from_json(tree).request_energy
    assert set(found) == {("intents", "full", ""), ("intents", "lite", "")}
    assert sum(found["intents", "lite", ""].counts) == 2


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 99},
        {"overhead_uj": -1},
        {"idle_uj": [["package"]]},
        {"other_uj": None},
        {"request_energy": [["m", "v", "c", [1, 2], 3]]},
        {"request_energy": [["m", "v", "c", "d", [0] * 23, 3]]},
        {"attributed_uj": [["m", "v", "p", "q", "o", "rapl", 1.5]]},
    ],
)
def test_a_damaged_ledger_is_refused(damage: dict[str, object]) -> None:
    tree = booked([(1000, 0, 10, 10, 5, 5, 10.0)]).to_json()
    with pytest.raises(LedgerError):
        Ledger.from_json({**tree, **damage})


@given(st.lists(entries, max_size=12), st.floats(1, 2))
def test_fully_loaded_joules_are_all_of_the_serving_joules_but_what_no_request_was_there_for(
    rows: list[tuple[int, int, int, int, int, int, float | None]], pue: float
) -> None:
    ledger = Ledger()
    for energy_uj, idle_uj, busy, serving, alice, bob, _ in rows:
        window = Window([DomainEnergy(CPU, energy_uj, idle_uj)], busy, serving, {ALICE: alice, BOB: bob})
        before = dict(ledger.loaded_uj)
        ledger.settle(attribute(window), None, pue=pue, elapsed_ns=600 * 10**9)
        assert all(ledger.loaded_uj[key] >= value for key, value in before.items())
    law = ledger.conservation()
    owed_uj = law.attributed_uj + law.idle_uj + law.overhead_uj - sum(ledger.unloaded_uj.values())
    assert sum(ledger.loaded_uj.values()) == pytest.approx(pue * owed_uj, abs=2 * len(rows) + 1)


def test_the_first_request_of_the_morning_does_not_pay_for_the_night() -> None:
    ledger = Ledger()
    night = Window([DomainEnergy(CPU, 36_000_000, 36_000_000)], 0, 0, {})
    ledger.settle(attribute(night), None, elapsed_ns=36_000 * 10**9)
    ledger.settle(attribute(Window([DomainEnergy(CPU, 1500, 1000)], 1, 1, {ALICE: 1})), None, elapsed_ns=10**9)
    assert ledger.loaded_uj == {(ALICE, "rapl"): 1500 + 36_000_000 // 3600}
    assert ledger.unloaded_uj == {"rapl": 36_000_000 - 36_000_000 // 3600}
