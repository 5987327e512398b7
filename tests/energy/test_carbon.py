from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.carbon import EFFICIENCY, TIMING, CarbonBook

HOUR_NS = 3600 * 10**9


def test_falling_back_in_a_dirty_hour_is_efficiency_at_the_mean_and_timing_beyond_it() -> None:
    book = CarbonBook()
    book.pass_time(100, HOUR_NS)
    book.pass_time(300, HOUR_NS)
    assert book.mean_grams_per_kwh == pytest.approx(200)
    book.save("fallback", 2, 300)
    assert book.balance_grams == {EFFICIENCY: pytest.approx(400), TIMING: pytest.approx(200)}


def test_what_is_saved_at_any_hour_is_efficiency_alone() -> None:
    book = CarbonBook()
    book.pass_time(100, HOUR_NS)
    book.save("cache", 2, 300)
    assert book.shown_grams == {EFFICIENCY: pytest.approx(600)}


def test_falling_back_in_a_clean_hour_counts_against_timing_without_the_counter_going_back() -> None:
    book = CarbonBook()
    book.pass_time(200, HOUR_NS)
    book.save("fallback", 1, 300)
    book.save("fallback", 1, 150)
    assert book.balance_grams[TIMING] == pytest.approx(50)
    assert book.shown_grams[TIMING] == pytest.approx(100)


@given(st.lists(st.tuples(st.sampled_from(["cache", "fallback"]), st.floats(0, 10), st.floats(0, 900)), max_size=20))
def test_both_mechanisms_together_are_all_that_was_saved(rows: list[tuple[str, float, float]]) -> None:
    book = CarbonBook()
    for reason, kwh, grams in rows:
        before = dict(book.shown_grams)
        book.pass_time(grams, HOUR_NS)
        book.save(reason, kwh, grams)
        assert all(book.shown_grams[key] >= value for key, value in before.items())
    assert sum(book.balance_grams.values()) == pytest.approx(sum(kwh * grams for _, kwh, grams in rows), abs=1e-6)
    assert CarbonBook.from_json(json.loads(json.dumps(book.to_json()))) == book
