"""A run's report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def markdown(run: dict[str, Any]) -> str:
    """The report of a run as `loadtest.load.session` writes it to `run.json`."""
    figures, plan = run["figures"], run["plan"]
    lines = [
        f"# Load: {plan['arrivals']}, {plan['protocol']}",
        "",
        f"{figures['sent']:,} requests in {figures['wall_s']:.0f} s: arrivals `{plan['arrivals']}` at a mean of"
        f" {plan['rate_per_s']:g} a second; texts {_popularity(plan)}; seed {plan['seed']}. Latencies run from the"
        " moment that a request was due, whether or not a client was free for it.",
        "",
        f"Joules are the server's own ({_source(run['energy'])}): `requests` is what computing the answers cost,"
        " `overhead` the rest of serving, `idle` what the machine draws anyway, `other` what other programs drew.",
        "",
        *_table(("", ""), _facts(figures)),
        "",
        *_table(("class", "answered", "p50 ms", "p99 ms", "answered by"), map(_class, figures["by_class"].items())),
        "",
        "By parts of the run:",
        "",
        *_table(("seconds", "answered", "p99 ms", "joules an answer", "with overhead"), map(_part, run["slices"])),
    ]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ("---", *["---:"] * (len(head) - 1)), *rows)]


def _facts(figures: dict[str, Any]) -> list[tuple[str, str]]:
    latency = figures["latency_ms"]
    return [
        ("answered", f"{figures['answered']:,} of {figures['sent']:,}"),
        ("failed, by status", _failures(figures)),
        ("p50 / p90 / p99 / max, ms", " / ".join(_ms(latency[one]) for one in ("p50", "p90", "p99", "max"))),
        ("waited for a free client, p99, ms", _ms(figures["waited_for_a_client_p99_ms"])),
        ("joules an answer (requests)", f"{_si(figures['joules_per_answer'])}J"),
        ("joules an answer (requests + overhead)", f"{_si(figures['joules_per_answer_with_overhead'])}J"),
        ("gCO2e an answer (requests)", f"{_si(figures['grams_per_answer'])}g"),
        ("joules in all", _joules(figures["joules"])),
        ("cache hits", _percent(figures["cache_hit_share"])),
        ("answered by", _by_point(figures["share_by_point"])),
        ("correct labels", _quality(figures["quality"])),
    ]


def _class(item: tuple[str, dict[str, Any]]) -> tuple[str, ...]:
    name, row = item
    latency = row["latency_ms"]
    return name, f"{row['answered']:,}", _ms(latency["p50"]), _ms(latency["p99"]), _by_point(row["share_by_point"])


def _part(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['from_s']:.0f} - {row['to_s']:.0f}",
        f"{row['answered']:,}",
        _ms(row["p99_ms"]),
        f"{_si(row['joules_per_answer'])}J",
        f"{_si(row['joules_per_answer_with_overhead'])}J",
    )


def _popularity(plan: dict[str, Any]) -> str:
    return "each asked once" if plan["zipf"] is None else f"by popularity (Zipf, exponent {plan['zipf']:g})"


def _source(energy: dict[str, Any]) -> str:
    if not energy["sources"]:
        return "it has none"
    bands = (("relative_uncertainty", "±{:.0%}"), ("dynamic_uncertainty", "those of answers ±{:.0%}"))
    known = [words.format(energy[name]) for name, words in bands if energy.get(name) is not None]
    return ", ".join([" + ".join(energy["sources"]), *known])


def _failures(figures: dict[str, Any]) -> str:
    failed = figures["failed_by_status"].items()
    return ", ".join(f"{count:,} x {'no reply' if status == '0' else status}" for status, count in failed) or "none"


def _joules(joules: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {'unknown' if value is None else f'{value:.1f}'}" for name, value in joules.items())


def _by_point(shares: dict[str, float]) -> str:
    return ", ".join(f"{name or '?'} {share:.1%}" for name, share in shares.items()) or "–"


def _quality(quality: dict[str, Any] | None) -> str:
    return "no labels were given" if quality is None else f"{quality['correct_share']:.1%} of {quality['judged']:,}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _si(value: float | None) -> str:
    if value is None:
        return "– "
    for factor, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "
