from __future__ import annotations

from xml.dom.minidom import parseString

import pytest

from loadtest.client import Question, Reply
from loadtest.demo_tables import Reading
from loadtest.energy_day import HOURS, header_difference, of_the_server, plot, rate_at, shares, worst_window


def book(measured: float, lost: float = 0.0) -> dict[str, float]:
    parts = {"attributed": 0.1, "overhead": 0.2, "idle": 0.5, "other": 0.2}
    books = {f"{name}_joules": share * measured for name, share in parts.items()}
    return {**books, "measured_joules": measured, "idle_joules": books["idle_joules"] - lost, "pending_joules": 0.0}


DAY = [(float(second), book(10.0 * second)) for second in range(0, 1200, 5)]


def test_the_rate_follows_the_hours_of_the_day() -> None:
    assert rate_at(6.5 / 24, 100) == pytest.approx(100 * HOURS[6])
    assert rate_at(0.0, 100) == pytest.approx(rate_at(1.0, 100))
    assert max(rate_at(share / 1000, 100) for share in range(1000)) <= 100


def test_the_worst_five_minutes_are_found_and_not_drowned_in_the_day() -> None:
    assert worst_window(DAY) == pytest.approx(0, abs=1e-12)
    lost = [(time_s, book(books["measured_joules"], 3.0 if time_s >= 900 else 0.0)) for time_s, books in DAY]
    assert worst_window(lost) == pytest.approx(3.0 / 3000, rel=0.02)


def test_shares_are_of_the_machine_and_of_the_server() -> None:
    found = shares(DAY)
    assert found == {"attributed": 0.1, "overhead": 0.2, "idle": 0.5, "other": 0.2}
    assert of_the_server(found) == {"attributed": 0.125, "overhead": 0.25, "idle": 0.625}


def test_what_replies_promised_is_set_beside_what_was_settled() -> None:
    reply = Reply(Question("a"), 200, 0.0, 0.1, joules=0.5)
    name = "jouleserve_attributed_joules_total"
    before = Reading({(name, frozenset({("outcome", "ok")})): 3.0})
    after = Reading(
        {
            (name, frozenset({("outcome", "ok")})): 4.9,
            (name, frozenset({("outcome", "cached")})): 0.1,
            (name, frozenset({("outcome", "error")})): 7.0,
        }
    )
    assert header_difference([reply] * 4, before, after)["difference"] == pytest.approx(0.0)
    assert header_difference([reply] * 3, before, after)["difference"] == pytest.approx(0.25)


def test_the_plot_is_a_picture_of_its_own() -> None:
    assert parseString(plot(DAY, 1200, 60)).documentElement.tagName == "svg"
