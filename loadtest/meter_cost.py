"""What the meter itself costs: its share of a core, and the slowest percent of requests with and without it.

    python -m loadtest.meter_cost [--minutes 10] [--slice 2] [--rate 200]

A real server under one steady load. For the share of a core the node process's CPU time is read from /proc, over a
minute without scrapes and over one with a scrape every 15 seconds. Then it is stopped and let go on (SIGSTOP, SIGCONT)
every two seconds, the order within a pair drawn by chance: whatever else the machine does meets both sides alike, and
replicas do not notice so short a silence. A stopped node process reads no meters, polls no replicas, settles nothing.
Requests belong to the slice that they were sent in. Given are the 99th percentiles of both sides and their ratio with a
95 % bootstrap interval over the pairs.
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
from pathlib import Path
from typing import Any

import httpx
import uvloop

from loadtest.client import percentile
from loadtest.demo_family import compile_demo_family
from loadtest.open_loop import OpenLoop
from loadtest.pairs import Part, interval, paired, ratio_of
from loadtest.served import Served, serve
from loadtest.texts import read_questions
from models.store import write_atomic

TARGETS = {"share_of_a_core": 0.001, "p99_ratio": 0.01}
WARM_UP_S = 10.0
SHARE_S = 60.0
SCRAPE_S = 15.0
EDGE_S = 0.02
"""Requests sent so close to the end of a slice may be answered in the next one, and are left out."""
_NS = 1e9


def cpu_ns(pid: int) -> int:
    """CPU time of a process of one thread, to the nanosecond."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


async def share_of_a_core(pid: int, metrics_url: str | None) -> float:
    """CPU time of the node process a second, scraped or not."""
    began, before, end = time.perf_counter(), cpu_ns(pid), time.perf_counter() + SHARE_S
    async with httpx.AsyncClient() as client:
        while (left := end - time.perf_counter()) > 0:
            if metrics_url:
                await client.get(f"{metrics_url}/metrics")
            await asyncio.sleep(min(left, SCRAPE_S))
    return (cpu_ns(pid) - before) / _NS / (time.perf_counter() - began)


async def slices(pid: int, given: argparse.Namespace) -> list[Part]:
    """Stop the process and let it go on in turns; beginning, end, whether it ran, and number of the pair."""
    chance, found = random.Random(7), list[Part]()
    try:
        for number in range(round(given.minutes * 60 / given.slice / 2)):
            for metered in chance.sample((True, False), 2):
                os.kill(pid, signal.SIGCONT if metered else signal.SIGSTOP)
                began = time.perf_counter()
                await asyncio.sleep(given.slice)
                found.append(Part(began, time.perf_counter() - EDGE_S, metered, number))
    finally:  # also where SIGTERM ends the run (`serve` sees to that): a process left stopped would never end
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return found


async def run(served: Served, pid: int, given: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison under one load."""
    loop = OpenLoop("127.0.0.1", served.port, read_questions(given.questions))
    seconds = WARM_UP_S + 2 * SHARE_S + given.minutes * 60
    load = asyncio.create_task(loop.offer(given.rate, seconds))
    await asyncio.sleep(WARM_UP_S)
    shares = [await share_of_a_core(pid, url) for url in (None, served.metrics_url)]
    parts = await slices(pid, given)
    reached = await load
    loop.close()
    pairs = paired(loop.outcomes, parts)
    sides = [[value for pair in pairs for value in pair[side]] for side in (0, 1)]
    return {
        "share_of_a_core": round(shares[0], 6),
        "share_of_a_core_scraped": round(shares[1], 6),
        **{f"p{round(100 * q)}_ms": [round(percentile(side, q), 3) for side in sides] for q in (0.5, 0.99)},
        **{f"p{round(100 * q)}_ratio": round(ratio_of(pairs, q), 4) for q in (0.5, 0.99)},
        **{f"p{round(100 * q)}_ratio_interval": [round(x, 4) for x in interval(pairs, q)] for q in (0.5, 0.99)},
        "requests": [len(side) for side in sides],
        "reached_a_second": round(reached, 1),
        "load_average": round(os.getloadavg()[0], 2),
    }


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Start a server and compare; pairs of figures are with the meter and without it."""
    settings = {"model.store": given.store, "cache.enabled": "false"}
    with serve(Path("var/meter-cost"), settings) as served:
        pid = int(httpx.get(f"{served.metrics_url}/healthz", timeout=10).json()["pid"])
        found = uvloop.run(run(served, pid, given))
    command = f"python -m loadtest.meter_cost --minutes {given.minutes:g} --slice {given.slice:g} --rate {given.rate:g}"
    return {"command": command, **found}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--questions", type=Path, default=Path("var/energy-questions.csv"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--slice", type=float, default=2.0, help="seconds; below 5, at which replicas notice")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--out", type=Path, default=Path("loadtest/results/meter_cost.json"))
    given = parser.parse_args()
    if not given.questions.is_file():
        compile_demo_family(given.store, given.questions)
    result = measure(given)
    met = {
        "share_of_a_core": result["share_of_a_core"] <= TARGETS["share_of_a_core"],
        "p99_ratio": max(abs(end - 1) for end in result["p99_ratio_interval"]) <= TARGETS["p99_ratio"],
    }
    write_atomic(given.out, json.dumps({**result, "targets": TARGETS, "met": met}, indent=1).encode() + b"\n")
    print(json.dumps(result, indent=1))
    print(f"written to {given.out}; targets {'met' if all(met.values()) else f'MISSED: {met}'}")
    sys.exit(0 if all(met.values()) else 1)


if __name__ == "__main__":
    main()
