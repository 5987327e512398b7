"""`make curves`: what each knob moves, measured on a real server that is tuned while it runs.

Every round visits every setting in another order; each is run right after a run of the defaults and told as a ratio to
it, so that a machine whose speed wanders (or that others use) moves both alike. Written are medians and ranges of the
rounds, as JSON and as a plot.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console

from loadtest.client import Question, closed_loop, percentile
from loadtest.demo_family import compile_demo_family
from loadtest.demo_tables import read_metrics
from loadtest.load.figures import Mark, grown, mark, per_answer
from loadtest.served import Served, serve
from loadtest.texts import popular, read_questions, texts_file
from models.store import write_atomic

SETTLE_S = 2.2
FOLLOW_S = 20.0
ADMIN = "curves"

console = Console(highlight=False)


@dataclass(frozen=True)
class Cell:
    """One setting of one knob. `changes` are laid over the defaults."""

    knob: str
    shown: str
    changes: dict[str, Any]
    clients: int = 32
    zipf: float | None = None
    """Popularity of the texts, of which there are `POPULAR`; None: each text comes once."""


OFF = {"cache.max_bytes": 0, "shaping.policy": "off"}
"""What holds beside each setting: no cache, so that every answer is computed, and the full point."""
MIB = 1024 * 1024
POPULAR = 400


def cells() -> list[Cell]:
    """Every setting, grouped by knob."""
    rows = [Cell("batching.max_rows", str(n), {"batching.max_rows": n}) for n in (1, 2, 4, 8, 16, 32)]
    objective = "batching.latency_objective_ms"
    rows += [Cell(objective, str(ms or "none"), {objective: ms}, clients=12) for ms in (None, 800, 400, 200)]
    rows += [Cell("batching.inline_ms", str(ms), {"batching.inline_ms": ms}, clients=1) for ms in (0, 20)]
    rows += [
        Cell("cache", f"{size // MIB} MiB, Zipf {zipf:g}", {"cache.max_bytes": size}, zipf=zipf)
        for zipf in (0.6, 1.0)
        for size in (0, 64 * MIB)
    ]
    free = {"shaping.policy": "pin", "shaping.floors.standard": 0, "shaping.floors.eco": 0}
    rows += [Cell("operating point", one, {**free, "shaping.pin_point": one}) for one in ("full", "lite", "nano")]
    return rows


@dataclass
class Tally:
    """The rounds of a cell."""

    joules: list[float] = field(default_factory=list)
    joules_ratio: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    p99_ratio: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    refused_share: list[float] = field(default_factory=list)
    hit_share: list[float] = field(default_factory=list)
    correct_share: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Median, least and most of each."""
        return {
            name: {"median": median(values), "least": min(values), "most": max(values)}
            for name, values in vars(self).items()
            if values
        }


class Knobs:
    """A running server whose settings are turned through /admin."""

    def __init__(self, served: Served, key: str) -> None:
        self._served = served
        self._client = httpx.Client(base_url=served.url, headers={"authorization": f"Bearer {key}"}, timeout=30)
        self._defaults: dict[str, Any] = _flat(self._client.get("/admin/tuning").json()["settings"])

    def turn(self, changes: dict[str, Any]) -> None:
        """Defaults with `OFF` and `changes` over them; returns when the server follows."""
        wanted = {**self._defaults, **OFF, **changes}
        reply = self._client.patch("/admin/tuning", json={"changes": wanted})
        reply.raise_for_status()
        settings = reply.json()["settings"]
        deadline = time.monotonic() + FOLLOW_S
        # By the values: a version that says what the last one said is not handed on.
        while {**self._client.get("/info").json()["tunables"], "version": 0} != {**settings, "version": 0}:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server did not follow its settings: {changes}")
            time.sleep(0.1)

    def measure(self, questions: Iterator[Question], clients: int, seconds: float) -> dict[str, float | None]:
        """Load for `seconds`, then what it cost."""
        before = self._mark()
        end = time.monotonic() + seconds
        run = asyncio.run(
            closed_loop(f"{self._served.url}/predict", questions, clients, lambda: time.monotonic() > end)
        )
        time.sleep(SETTLE_S)
        after = self._mark()
        judged = [one.correct for one in run.answered if one.correct is not None]
        hits, misses = grown(before, after, "hits") or 0.0, grown(before, after, "misses") or 0.0
        return {
            "joules": per_answer(before, after, "requests", "overhead"),
            "p99_ms": 1000 * percentile([one.latency_s for one in run.answered], 0.99),
            "rate": len(run.answered) / run.wall_s,
            "refused_share": sum(one.status == 429 for one in run.replies) / max(1, len(run.replies)),
            "hit_share": hits / (hits + misses) if hits + misses else None,
            "correct_share": sum(judged) / len(judged) if judged else None,
        }

    def _mark(self) -> Mark:
        return mark(0.0, read_metrics(self._served.metrics_url))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


def run_rounds(knobs: Knobs, asked: list[Question], rounds: int, seconds: float) -> dict[int, Tally]:
    """All cells in `rounds` orders; beside each the defaults at the same number of clients."""
    every = cells()
    tallies = {number: Tally() for number in range(len(every))}
    chance = random.Random(7)
    for turn in range(rounds):
        for number in chance.sample(range(len(every)), len(every)):
            cell = every[number]
            seed = chance.random()  # of both: the same texts
            knobs.turn({})
            beside = knobs.measure(_questions(asked, cell.zipf, seed), cell.clients, seconds)
            knobs.turn(cell.changes)
            _take(tallies[number], knobs.measure(_questions(asked, cell.zipf, seed), cell.clients, seconds), beside)
            console.print(f"round {turn + 1}/{rounds}: {cell.knob} {cell.shown}")
    return tallies


def _questions(asked: list[Question], zipf: float | None, seed: float) -> Iterator[Question]:
    if zipf is not None:
        return popular(asked[:POPULAR], int(seed * 1e9), zipf)
    order = random.Random(seed).sample(asked, len(asked))
    return (order[n % len(order)] for n in range(10**9))


def _take(tally: Tally, row: dict[str, float | None], beside: dict[str, float | None]) -> None:
    for name, value in row.items():
        if value is not None:
            getattr(tally, name).append(value)
    for name, ratio in (("joules", tally.joules_ratio), ("p99_ms", tally.p99_ratio)):
        above, below = row[name], beside[name]
        if above is not None and below:
            ratio.append(above / below)


def draw(figures: dict[str, Any], path: Path) -> None:
    """One plot a knob: joules an answer over the defaults, with the range of the rounds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "jouleserve"
    from matplotlib import pyplot

    knobs = list(dict.fromkeys(row["knob"] for row in figures["cells"]))
    picture, axes = pyplot.subplots(1, len(knobs), figsize=(3.1 * len(knobs), 3.4), layout="constrained")
    for axis, knob in zip(axes, knobs, strict=True):
        rows = [row for row in figures["cells"] if row["knob"] == knob]
        places = range(len(rows))
        for name, colour, words in (("joules_ratio", "#0b7a4f", "joules"), ("p99_ratio", "#1d5fa8", "p99")):
            middle = [row[name]["median"] for row in rows]
            spread = [
                [at - row[name]["least"] for at, row in zip(middle, rows, strict=True)],
                [row[name]["most"] - at for at, row in zip(middle, rows, strict=True)],
            ]
            axis.errorbar(places, middle, yerr=spread, marker="o", capsize=3, color=colour, label=words, linewidth=1.2)
        axis.axhline(1, color="#999", linewidth=0.8)
        axis.set_title(knob, fontsize=9)
        axis.set_xticks(places, [row["shown"].replace(", ", "\n") for row in rows], fontsize=7)
        axis.tick_params(axis="y", labelsize=7)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("of the defaults (median, range)", fontsize=8)
    axes[0].legend(fontsize=7, frameon=False)
    picture.savefig(path, metadata={"Date": None})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--folder", type=Path, default=Path("var/curves"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    parser.add_argument("--out", type=Path, default=Path("docs/curves.json"), help="the plot goes beside it as .svg")
    parser.add_argument(
        "--texts", type=texts_file, help="texts that suit the family in the store; else the demo's is compiled"
    )
    given = parser.parse_args()
    questions = given.texts or given.folder / "questions.csv"
    if given.texts is None:
        compile_demo_family(given.store, questions)
    given.folder.mkdir(parents=True, exist_ok=True)
    key = secrets.token_hex(16)
    keys = given.folder / "admins"
    keys.touch(mode=0o600)
    keys.write_text(f"{ADMIN}: sha256:{hashlib.sha256(key.encode()).hexdigest()}\n")
    settings = {"model.store": given.store, "server.admin_keys_file": keys, "grid.static_grams_per_kwh": 300}
    with serve(given.folder / "server", settings, edge=True) as served:
        asked = list(islice(read_questions(questions), 6000))
        source = sorted(read_metrics(served.metrics_url).label_values("jouleserve_energy_joules_total", "source"))
        tallies = run_rounds(Knobs(served, key), asked, given.rounds, given.seconds)
    figures = {
        "what": "joules an answer (requests + overhead) and p99; ratios are to the defaults beside each run",
        "energy_source": source,
        "rounds": given.rounds,
        "seconds": given.seconds,
        "load_average_at_the_end": os.getloadavg()[0],
        "cells": [
            {"knob": cell.knob, "shown": cell.shown, "clients": cell.clients, **_rounded(tallies[number].to_dict())}
            for number, cell in enumerate(cells())
        ],
    }
    write_atomic(given.out, json.dumps(figures, indent=1).encode() + b"\n")
    draw(figures, given.out.with_suffix(".svg"))
    console.print(f"written: {given.out} and {given.out.with_suffix('.svg')}")


def _rounded(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: _rounded(value) if isinstance(value, dict) else float(f"{value:.4g}") for name, value in tree.items()}


if __name__ == "__main__":
    main()
