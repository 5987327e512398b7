"""What a run cost and how it went, as plain figures: from its requests' outcomes and the server's own counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from loadtest.client import percentile
from loadtest.demo_tables import Reading
from loadtest.load.plan import Outcome

COUNTED = ("requests", "overhead", "idle", "other", "metered", "grams", "answers", "hits", "misses")
_OVERLAPPING = {"psys", "core", "uncore"}


@dataclass(frozen=True)
class Mark:
    """The server's counters at one moment of a run."""

    at_s: float
    """Seconds from the start of the plan."""
    counters: dict[str, float | None]
    """By the names in `COUNTED`, joules and grams and counts; None: the server has no such figure."""


def mark(at_s: float, reading: Reading) -> Mark:
    """The counters that the report needs."""

    def total(name: str, **labels: str) -> float | None:
        return reading.total(name, **labels) if name in reading.names() else None

    reasons = reading.label_values("jouleserve_unattributed_joules_total", "reason")
    others = [total("jouleserve_unattributed_joules_total", reason=one) or 0.0 for one in reasons if one != "overhead"]
    answers = [total("jouleserve_requests_total", outcome=one) or 0.0 for one in ("ok", "cached")]
    domains = reading.label_values("jouleserve_energy_joules_total", "domain") - _OVERLAPPING
    return Mark(
        at_s,
        {
            "requests": total("jouleserve_attributed_joules_total"),
            "overhead": total("jouleserve_unattributed_joules_total", reason="overhead"),
            "idle": _sum([total("jouleserve_idle_joules_total", domain=one) for one in domains]),
            "other": sum(others) if reasons else None,
            "metered": _sum([total("jouleserve_energy_joules_total", domain=one) for one in domains]),
            "grams": total("jouleserve_carbon_grams_total", scope="attributed"),
            "answers": sum(answers),
            "hits": total("jouleserve_cache_hits_total"),
            "misses": total("jouleserve_cache_misses_total"),
        },
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def grown(before: Mark, after: Mark, name: str) -> float | None:
    """By how much a counter grew; None where there is none."""
    to = after.counters[name]
    return None if to is None else to - (before.counters[name] or 0.0)


def per_answer(before: Mark, after: Mark, *names: str) -> float | None:
    """The growth of counters together, per answer that the server counted between the marks."""
    amounts = [grown(before, after, name) for name in names]
    answers = grown(before, after, "answers")
    known = [amount for amount in amounts if amount is not None]
    return sum(known) / answers if len(known) == len(names) and answers else None


def run_figures(outcomes: Sequence[Outcome], marks: Sequence[Mark], wall_s: float) -> dict[str, Any]:
    """JSON-serializable. Joules are what the server's meter says; what it does not say is null."""
    answered = [one for one in outcomes if one.status == 200]
    judged = [one.correct for one in answered if one.correct is not None]
    first, last = marks[0], marks[-1]
    hits, misses = grown(first, last, "hits"), grown(first, last, "misses")
    return {
        "wall_s": round(wall_s, 3),
        "sent": len(outcomes),
        "answered": len(answered),
        "failed_by_status": {
            str(k): v for k, v in sorted(Counter(o.status for o in outcomes if o.status != 200).items())
        },
        "requests_per_s": round(len(answered) / wall_s, 2) if wall_s else None,
        "latency_ms": _latencies(answered),
        "waited_for_a_client_p99_ms": _ms(percentile([one.sent_s - one.due_s for one in outcomes], 0.99)),
        "joules": {name: grown(first, last, name) for name in ("requests", "overhead", "idle", "other", "metered")},
        "joules_per_answer": per_answer(first, last, "requests"),
        "joules_per_answer_with_overhead": per_answer(first, last, "requests", "overhead"),
        "grams_per_answer": per_answer(first, last, "grams"),
        "cache_hit_share": hits / (hits + misses)
        if hits is not None and misses is not None and hits + misses
        else None,
        "share_by_point": _shares([one.point for one in answered]),
        "by_class": {
            name: {
                "answered": len(ones),
                "latency_ms": _latencies(ones),
                "share_by_point": _shares([one.point for one in ones]),
            }
            for name in sorted({one.quality for one in answered})
            for ones in [[one for one in answered if one.quality == name]]
        },
        "quality": {"judged": len(judged), "correct_share": sum(judged) / len(judged)} if judged else None,
    }


def slices(outcomes: Sequence[Outcome], marks: Sequence[Mark]) -> list[dict[str, Any]]:
    """The same between each two marks: what spread there was within the run."""
    rows = []
    for before, after in pairwise(marks):
        ones = [one for one in outcomes if one.status == 200 and before.at_s <= one.due_s < after.at_s]
        rows.append(
            {
                "from_s": round(before.at_s, 2),
                "to_s": round(after.at_s, 2),
                "answered": len(ones),
                "p99_ms": _ms(percentile([one.latency_s for one in ones], 0.99)) if ones else None,
                "joules_per_answer": per_answer(before, after, "requests"),
                "joules_per_answer_with_overhead": per_answer(before, after, "requests", "overhead"),
            }
        )
    return rows


def _latencies(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    values = [one.latency_s for one in outcomes]
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: _ms(percentile(values, share)) if values else None for name, share in shares.items()}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _shares(names: Sequence[str]) -> dict[str, float]:
    return {name: round(count / len(names), 4) for name, count in Counter(names).most_common()}
