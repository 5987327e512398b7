"""What clients notice of jobs: latencies of an open loop with and without a backlog that is being worked off, in turns.

    python -m loadtest.jobs_beside [--pairs 6] [--seconds 15] [--share 0.3]

Part of `make bench-jobs`. One steady load on one server; a job of 10,000 texts is submitted before the slices of one
kind and cancelled before those of the other, the order within a pair drawn by chance, so that whatever else the machine
does falls on both. Given are the percentiles of both kinds and their ratio with a 95 % bootstrap interval over the
pairs, and how many texts of jobs were computed in each pair: one without any says nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import uvloop
from rich.console import Console

from loadtest.chaos_cases import capacity
from loadtest.client import Question, percentile
from loadtest.demo_family import FAMILY, compile_demo_family
from loadtest.open_loop import OpenLoop
from loadtest.pairs import Pair, Part, interval, paired, ratio_of, typical_ratio
from loadtest.served import Served, serve
from loadtest.texts import read_questions, texts_file
from models.store import write_atomic

WARM_UP_S = 3.0
SETTLE_S = 5.0
"""Two leases of a cancelled job may still be out, one after the other, each for two seconds."""
SPARE_S = 10.0
TEXTS = 10_000
CAPACITY_REQUESTS = 1500
SHARES = (0.5, 0.99)

console = Console()


class Backlog:
    """A job that is there, or not."""

    def __init__(self, url: str, questions: list[Question]) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=60)
        self._questions = questions
        self._made = 0
        self._job: str | None = None

    async def switch(self, on: bool) -> None:
        """Submit a job of many texts, or cancel it."""
        if on and self._job is None:
            self._made += 1
            texts = [self._questions[n % len(self._questions)].text for n in range(TEXTS)]
            body = {"inputs": [[f"{text} {self._made}"] for text in texts], "within_s": 86_400, "truncate": True}
            made = await self._client.post("/jobs", json=body)
            self._job = made.raise_for_status().json()["id"]
        elif not on and self._job is not None:
            (await self._client.delete(f"/jobs/{self._job}")).raise_for_status()
            self._job = None

    async def done(self) -> int:
        """Texts of it that are computed."""
        if self._job is None:
            return 0
        shown = await self._client.get(f"/jobs/{self._job}")
        return int(shown.raise_for_status().json()["texts_done"])


async def in_turns(
    served: Served, questions: list[Question], rate: float, seconds: float, pairs: int
) -> tuple[list[Pair], list[int], float]:
    """Latencies with jobs and without them for each pair of slices, the job texts that were computed in each, and the
    rate that was reached."""
    loop = OpenLoop("127.0.0.1", served.port, questions)
    load = asyncio.create_task(loop.offer(rate, WARM_UP_S + 2 * pairs * (SETTLE_S + seconds) + SPARE_S))
    await asyncio.sleep(WARM_UP_S)
    backlog, chance = Backlog(served.url, questions), random.Random(7)
    parts: list[Part] = []
    computed = [0] * pairs
    for pair in range(pairs):
        for on in chance.sample((True, False), 2):
            await backlog.switch(on)
            await asyncio.sleep(SETTLE_S)
            before, began = await backlog.done(), time.perf_counter()
            await asyncio.sleep(seconds)
            parts.append(Part(began, time.perf_counter(), on, pair))
            computed[pair] += await backlog.done() - before
        found = paired(loop.outcomes, parts)[pair]
        told = [f"p50 {percentile(side, 0.5):.1f} p99 {percentile(side, 0.99):.1f} ms" for side in found]
        console.print(f"  alone {told[1]}; beside {computed[pair]} texts of jobs {told[0]}", highlight=False)
    if load.done():
        raise RuntimeError("the load ended before the last slice: the machine was too slow to answer; try fewer pairs")
    reached = await load
    loop.close()
    return paired(loop.outcomes, parts), computed, reached


def figures_of(pairs: list[Pair], computed: list[int], seconds: float) -> dict[str, Any]:
    """What was found, of the pairs in which jobs ran. Raises RuntimeError if there are none."""
    shown = [pair for pair, texts in zip(pairs, computed, strict=True) if texts]
    if not shown:
        raise RuntimeError("no text of a job was computed beside the clients: nothing is shown; lower --share")
    figures: dict[str, Any] = {
        "pairs": len(pairs),
        "seconds": seconds,
        "job_texts_by_pair": computed,
        "pairs_without_jobs_left_out": len(pairs) - len(shown),
        "job_texts_per_s_beside": round(sum(computed) / (len(shown) * seconds), 2),
        "requests": {"beside": sum(len(one) for one, _ in shown), "alone": sum(len(one) for _, one in shown)},
    }
    for share in SHARES:
        name = f"p{round(100 * share)}"
        beside, alone = (percentile([ms for pair in shown for ms in pair[side]], share) for side in (0, 1))
        figures[f"{name}_ms"] = {"beside": round(beside, 2), "alone": round(alone, 2)}
        figures[f"{name}_ratio"] = round(ratio_of(shown, share), 3)
        figures[f"{name}_ratio_interval"] = [round(end, 3) for end in interval(shown, share)]
        typical, low, high = typical_ratio(shown, share)
        figures[f"{name}_ratio_median_of_pairs"] = round(typical, 3)
        figures[f"{name}_ratio_median_of_pairs_interval"] = [round(low, 3), round(high, 3)]
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--family", default=FAMILY)
    parser.add_argument(
        "--texts", type=texts_file, help=".csv, .parquet or .txt with distinct texts (default: the demo's)"
    )
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
            rate = options.share * capacity(served, questions, CAPACITY_REQUESTS)
            pairs, computed, reached = uvloop.run(in_turns(served, questions, rate, options.seconds, options.pairs))
    command = f"python -m loadtest.jobs_beside --pairs {options.pairs} --seconds {options.seconds:g}"
    figures: dict[str, Any] = {
        "command": f"{command} --share {options.share:g}",
        "requests_per_s": round(rate, 1),
        "reached_per_s": round(reached, 1),
        "load_average": round(os.getloadavg()[0], 1),
        **figures_of(pairs, computed, options.seconds),
    }
    console.print_json(data=figures)
    if options.out is not None:
        write_atomic(options.out, json.dumps(figures, indent=1).encode() + b"\n")
        console.print(f"written: {options.out}", highlight=False)


if __name__ == "__main__":
    main()
