"""What the meter itself costs: its share of a core, and the slowest percent of requests with and without it.

    python -m loadtest.meter_cost [--rounds 20] [--slice 6] [--rate 40]

A real server under a steady load, in slices: in every other one the node process is stopped (SIGSTOP), so that nothing
reads meters, polls replicas or settles. Both sides see the same server, minutes and neighbours; the order within a pair
changes every round. Given are the 99th percentiles of both sides and their ratio with a 95 % bootstrap interval over
the pairs: on a busy machine the interval is wide, and says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvloop

from loadtest.client import percentile
from loadtest.demo_family import compile_demo_family
from loadtest.demo_tables import read_metrics
from loadtest.open_loop import OpenLoop
from loadtest.served import Served, serve
from loadtest.texts import read_questions

TARGETS = {"share_of_a_core": 0.001, "p99_ratio": 0.01}
WARM_UP_S = 5.0
_DRAWS = 2000


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def ratio_of(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], share: float = 0.99) -> float:
    """Percentile of all latencies with the meter over that of all without."""
    with_meter = [value for pair in pairs for value in pair[0]]
    without = [value for pair in pairs for value in pair[1]]
    return percentile(with_meter, share) / percentile(without, share)


def interval(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int = 1) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio, drawing whole pairs."""
    chance = random.Random(seed)
    drawn = sorted(ratio_of(chance.choices(pairs, k=len(pairs))) for _ in range(_DRAWS))
    return drawn[int(0.025 * _DRAWS)], drawn[int(0.975 * _DRAWS)]


async def slices(
    served: Served, loop: OpenLoop, pid: int, given: argparse.Namespace
) -> list[tuple[list[float], list[float]]]:
    """Latencies in milliseconds with and without the meter, by round."""

    async def one() -> list[float]:
        first = len(loop.outcomes)
        await loop.offer(given.rate, given.slice)
        return [1000 * one.latency_s for one in loop.outcomes[first:] if one.status == 200]

    await loop.offer(given.rate, WARM_UP_S)
    pairs = []
    for number in range(given.rounds):
        order = (True, False) if number % 2 else (False, True)
        seen: dict[bool, list[float]] = {}
        for metered in order:
            with contextlib.nullcontext() if metered else stopped(pid):
                seen[metered] = await one()
        pairs.append((seen[True], seen[False]))
        print(f"round {number + 1} of {given.rounds}", file=sys.stderr)
    return pairs


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison."""
    questions = read_questions(given.questions)
    settings = {"model.store": given.store, "cache.enabled": "false"}
    with serve(Path("var/meter-cost"), settings) as served:
        pid = int(httpx.get(f"{served.metrics_url}/healthz", timeout=10).json()["pid"])
        loop = OpenLoop("127.0.0.1", served.port, questions)
        pairs = uvloop.run(slices(served, loop, pid, given))
        name = "jouleserve_meter_cpu_seconds_total"
        before, began = read_metrics(served.metrics_url).total(name), time.monotonic()
        asyncio.run(OpenLoop("127.0.0.1", served.port, questions).offer(given.rate, given.slice * 5))
        spent, wall_s = read_metrics(served.metrics_url).total(name) - before, time.monotonic() - began
    low, high = interval(pairs)
    return {
        "command": f"python -m loadtest.meter_cost --rounds {given.rounds} --slice {given.slice:g}"
        f" --rate {given.rate:g}",
        "share_of_a_core": round(spent / wall_s, 6),
        "p99_ms_with": round(percentile([value for pair in pairs for value in pair[0]], 0.99), 3),
        "p99_ms_without": round(percentile([value for pair in pairs for value in pair[1]], 0.99), 3),
        "p99_ratio": round(ratio_of(pairs), 4),
        "p99_ratio_interval": [round(low, 4), round(high, 4)],
        "p50_ratio": round(ratio_of(pairs, 0.5), 4),
        "requests_a_side": sum(len(pair[0]) for pair in pairs),
        "load_average": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--questions", type=Path, default=Path("var/energy-questions.csv"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--slice", type=float, default=6.0, help="seconds")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second")
    parser.add_argument("--out", type=Path, default=Path("loadtest/results/meter_cost.json"))
    given = parser.parse_args()
    if not given.questions.is_file():
        compile_demo_family(given.store, given.questions)
    result = measure(given)
    met = {
        "share_of_a_core": result["share_of_a_core"] <= TARGETS["share_of_a_core"],
        "p99_ratio": abs(result["p99_ratio"] - 1) <= TARGETS["p99_ratio"],
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({**result, "targets": TARGETS, "met": met}, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(f"written to {given.out}; targets {'met' if all(met.values()) else f'MISSED: {met}'}")
    sys.exit(0 if all(met.values()) else 1)


if __name__ == "__main__":
    main()
