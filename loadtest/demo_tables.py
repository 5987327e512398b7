"""The demo's figures: what the clients saw, beside what the node process settled."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich import box
from rich.table import Table

from loadtest.client import Reply, Run, percentile
from loadtest.http import HTTP

Labels = frozenset[tuple[str, str]]
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Reading:
    """One scrape: every sample by name and labels."""

    samples: dict[tuple[str, Labels], float]

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples called `name` whose labels include `labels`."""
        wanted = set(labels.items())
        return sum(value for (found, its), value in self.samples.items() if found == name and wanted <= its)

    def names(self) -> set[str]:
        """Names of all samples."""
        return {name for name, _ in self.samples}

    def label_values(self, name: str, label: str) -> set[str]:
        """Values that `label` takes in the samples called `name`."""
        return {dict(its)[label] for found, its in self.samples if found == name and label in dict(its)}


def read_metrics(metrics_url: str) -> Reading:
    """Scrape the node process. Raises httpx.HTTPError, or ValueError if what answers is none."""
    text = HTTP.get(f"{metrics_url}/metrics", timeout=10).raise_for_status().text
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return Reading(samples)


def point_table(run: Run, before: Reading, after: Reading) -> Table:
    """One row for each operating point that answered."""
    source = "+".join(sorted(after.label_values("jouleserve_attributed_joules_total", "source"))) or "none"
    uncertainty = max(
        (v for (name, _), v in after.samples.items() if name == "jouleserve_dynamic_relative_uncertainty_ratio"),
        default=float("nan"),
    )
    title = f"by operating point (dynamic joules per 1,000 requests: {source}, ±{uncertainty:.0%})"
    # Narrow enough for a terminal of 80 columns, where a wider table would lose its figures.
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("point", "requests", "hits", "accuracy", "p50 ms", "p99 ms", "J/1k run", "J/1k all", "gCO2e"):
        table.add_column(column, justify="left" if column == "point" else "right")
    by_point: dict[str, list[Reply]] = {}
    for reply in run.answered:
        by_point.setdefault(reply.point, []).append(reply)
    for point, replies in sorted(by_point.items(), key=lambda item: -len(item[1])):
        table.add_row(*_row(point, replies, before, after))
    table.add_row(*_row("all", run.answered, before, after), style="bold")
    return table


def _row(point: str, replies: list[Reply], before: Reading, after: Reading) -> list[str]:
    latencies = [reply.latency_s for reply in replies]
    judged = [reply.correct for reply in replies if reply.correct is not None]
    variant = {} if point == "all" else {"variant": replies[0].variant}
    joules = _grown("jouleserve_attributed_joules_total", before, after, **variant)
    computed_joules = _grown("jouleserve_attributed_joules_total", before, after, outcome="ok", **variant)
    computed = sum(reply.cache == "miss" for reply in replies)
    grams = _grown("jouleserve_carbon_grams_total", before, after, scope="attributed", **variant)
    return [
        point,
        f"{len(replies):,}",
        f"{1 - computed / len(replies):.0%}",
        f"{sum(judged) / len(judged):.1%}" if judged else "–",
        f"{percentile(latencies, 0.5) * 1e3:.1f}",
        f"{percentile(latencies, 0.99) * 1e3:.1f}",
        f"{computed_joules / computed * 1000:.2f}" if computed else "–",
        f"{joules / len(replies) * 1000:.2f}",
        f"{grams:.1e}",
    ]


def summary_lines(run: Run, before: Reading, after: Reading) -> list[str]:
    """What was saved, what went wrong, why the points answered."""
    failed = Counter(reply.status for reply in run.replies if reply.status != 200)
    spent = _grown("jouleserve_attributed_joules_total", before, after)
    lines = [
        f"{len(run.answered):,} answers in {run.wall_s:.0f} s, "
        + (f"failures by status: {dict(failed)}" if failed else "none failed"),
        "standard requests were answered because of: "
        + ", ".join(f"{reason} {count:,}" for reason, count in _reasons(run).most_common(6)),
    ]
    for reason, words in (("fallback", "falling back to smaller models"), ("cache", "answering from the cache")):
        saved = _grown("jouleserve_energy_avoided_joules_total", before, after, reason=reason)
        if saved:
            lines.append(f"saved by {words}: {saved:.1f} J ({saved / (saved + spent):.0%} of what it would have been)")
    return lines


def conservation_line(books: dict[str, Any]) -> str:
    """The energy books of the demo run in one line."""
    return (
        f"conservation over the run: {books['measured_joules']:.1f} J measured = "
        f"{books['attributed_joules']:.1f} requests + {books['idle_joules']:.1f} idle + "
        f"{books['overhead_joules']:.1f} overhead + {books['other_joules']:.1f} other; "
        f"error {books['error_ratio']:.4%}"
    )


def _reasons(run: Run) -> Counter[str]:
    standard = (reply for reply in run.answered if reply.question.quality == "standard")
    return Counter(reply.reason.split(":")[0] for reply in standard)


def _grown(name: str, before: Reading, after: Reading, **labels: str) -> float:
    return after.total(name, **labels) - before.total(name, **labels)
