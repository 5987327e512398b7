"""A run's figures: what is not measured stays unknown, latency counts from when a request was due."""

from __future__ import annotations

import pytest

from loadtest.demo_tables import Reading
from loadtest.load.figures import Mark, mark, per_answer, run_figures, slices
from loadtest.load.plan import Outcome


def outcome(number: int, due_s: float, latency_s: float, status: int = 200, correct: bool | None = None) -> Outcome:
    return Outcome(
        number, due_s, due_s + 0.001, due_s + latency_s, status, "eco" if number % 2 else "strict", "full",
        "full", "miss", correct,
    )  # fmt: skip


def marks(*rows: tuple[float, float | None, float]) -> list[Mark]:
    names = ("overhead", "idle", "other", "metered", "grams", "hits", "misses")
    return [Mark(at, {**dict.fromkeys(names), "requests": joules, "answers": answers}) for at, joules, answers in rows]


def test_latency_counts_from_when_a_request_was_due() -> None:
    figures = run_figures([outcome(n, n * 0.1, 0.01 * (n + 1)) for n in range(100)], marks((0, 0, 0), (10, 1, 100)), 10)
    assert figures["latency_ms"] == {"p50": 500, "p90": 900, "p99": 990, "max": 1000}
    assert figures["waited_for_a_client_p99_ms"] == pytest.approx(1)
    assert figures["by_class"]["eco"]["answered"] == 50


def test_joules_are_those_between_the_marks_for_each_answer() -> None:
    first, last = marks((0, 5, 1000), (10, 9, 2000))
    assert per_answer(first, last, "requests") == pytest.approx(4e-3)


def test_what_the_server_does_not_measure_is_unknown_not_zero() -> None:
    figures = run_figures([outcome(0, 0, 0.1)], marks((0, None, 0), (10, None, 1)), 10)
    assert figures["joules_per_answer"] is None
    assert figures["joules"]["idle"] is None
    assert figures["grams_per_answer"] is None
    assert figures["cache_hit_share"] is None
    assert figures["quality"] is None


def test_failures_are_counted_by_status_and_kept_out_of_the_latencies() -> None:
    outcomes = [outcome(0, 0, 0.1, correct=True), outcome(1, 0, 9, 429), outcome(2, 0, 9, 0), outcome(3, 0, 0.2)]
    figures = run_figures(outcomes, marks((0, 0, 0), (10, 1, 2)), 10)
    assert figures["failed_by_status"] == {"0": 1, "429": 1}
    assert figures["latency_ms"]["max"] == 200
    assert figures["quality"] == {"judged": 1, "correct_share": 1.0}


def test_parts_hold_what_fell_due_in_them() -> None:
    parts = slices([outcome(n, n, 0.1) for n in range(10)], marks((0, 0, 0), (4, 1, 4), (10, 4, 10)))
    assert [part["answered"] for part in parts] == [4, 6]
    assert [part["joules_per_answer"] for part in parts] == pytest.approx([0.25, 0.5])


def test_a_mark_takes_no_overlapping_domain_and_only_what_there_is() -> None:
    def sample(name: str, value: float, **labels: str) -> tuple[tuple[str, frozenset[tuple[str, str]]], float]:
        return (name, frozenset(labels.items())), value

    taken = mark(1.0, Reading(dict([
        sample("jouleserve_energy_joules_total", 10, domain="package"),
        sample("jouleserve_energy_joules_total", 99, domain="psys"),
        sample("jouleserve_unattributed_joules_total", 2, reason="overhead"),
        sample("jouleserve_unattributed_joules_total", 3, reason="processes"),
        sample("jouleserve_requests_total", 7, outcome="ok"),
        sample("jouleserve_requests_total", 5, outcome="cached"),
        sample("jouleserve_requests_total", 50, outcome="shed"),
    ])))  # fmt: skip
    assert taken.counters["metered"] == 10
    assert (taken.counters["overhead"], taken.counters["other"]) == (2, 3)
    assert taken.counters["answers"] == 12
    assert taken.counters["idle"] is None
