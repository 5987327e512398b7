"""What clients notice of jobs: latencies of an open loop with and without a backlog that is being worked off, in turns.

Part of `make bench-jobs`. The two kinds of slices follow one another on one server, so that whatever else the machine
does falls on both; the figures are the ratios.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console

from loadtest.chaos_cases import capacity
from loadtest.client import Question, percentile
from loadtest.demo_family import FAMILY, compile_demo_family
from loadtest.open_loop import offer
from loadtest.served import Served, serve
from loadtest.texts import read_questions

SETTLE_S = 2.0

console = Console()


def slice_of(served: Served, questions: list[Question], rate: float, seconds: float) -> dict[str, float]:
    """Milliseconds of a slice, by share of the requests."""
    outcomes, _ = offer("127.0.0.1", served.port, questions, rate, seconds)
    latencies = [1e3 * one.latency_s for one in outcomes if one.status == 200]
    return {"p50": percentile(latencies, 0.5), "p99": percentile(latencies, 0.99), "answered": len(latencies)}


def in_turns(
    served: Served, questions: list[Question], rate: float, seconds: float, pairs: int
) -> tuple[list[tuple[dict[str, float], dict[str, float]]], int]:
    """(alone, beside a backlog) for each pair of slices, and how many texts of jobs were computed in the latter."""
    texts = [[question.text] for question in questions]
    found, computed = [], 0
    for pair in range(pairs):
        alone = slice_of(served, questions, rate, seconds)
        backlog = [[f"{one[0]} {pair} {again}"] for again in range(10_000 // len(texts) + 1) for one in texts][:10_000]
        body = {"inputs": backlog, "within_s": 86_400, "truncate": True}
        job = httpx.post(f"{served.url}/jobs", json=body, timeout=60).raise_for_status().json()
        time.sleep(SETTLE_S)
        before = httpx.get(f"{served.url}/jobs/{job['id']}", timeout=20).json()["texts_done"]
        beside = slice_of(served, questions, rate, seconds)
        after = httpx.get(f"{served.url}/jobs/{job['id']}", timeout=20).json()["texts_done"]
        httpx.delete(f"{served.url}/jobs/{job['id']}", timeout=20)
        time.sleep(SETTLE_S)
        computed += after - before
        found.append((alone, beside))
        console.print(
            f"  alone p50 {alone['p50']:.1f} p99 {alone['p99']:.1f} ms; beside {after - before} texts of jobs"
            f" p50 {beside['p50']:.1f} p99 {beside['p99']:.1f} ms",
            highlight=False,
        )
    return found, computed


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--family", default=FAMILY)
    parser.add_argument("--texts", type=Path, help=".csv, .parquet or .txt with distinct texts (default: the demo's)")
    parser.add_argument("--share", type=float, default=0.3, help="of the capacity that the clients use")
    parser.add_argument("--seconds", type=float, default=15.0, help="of a slice")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beside-") as name:
        folder = Path(name)
        if options.texts is None:
            options.texts = folder / "questions.csv"
            compile_demo_family(options.store, options.texts)
        questions = [Question(q.text, "strict") for q in read_questions(options.texts)]
        settings: dict[str, object] = {
            "model.store": options.store.resolve(),
            "model.family": options.family,
            "cache.enabled": "false",
            "energy.source": "estimated",
        }
        with serve(folder, settings, edge=True) as served:
            rate = options.share * capacity(served, questions, 1500)
            found, computed = in_turns(served, questions, rate, options.seconds, options.pairs)
    figures: dict[str, Any] = {
        "requests_per_s": round(rate, 1),
        "pairs": options.pairs,
        "seconds": options.seconds,
        "job_texts_per_s_beside": round(computed / (options.pairs * options.seconds), 1),
    }
    for share in ("p50", "p99"):
        figures[f"{share}_ms_alone"] = round(median(alone[share] for alone, _ in found), 2)
        figures[f"{share}_ms_beside"] = round(median(beside[share] for _, beside in found), 2)
        figures[f"{share}_ratio"] = round(median(beside[share] / alone[share] for alone, beside in found), 3)
    console.print_json(data=figures)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
