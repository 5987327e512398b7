"""What the meter itself costs: its share of a core, and the slowest percent of requests with and without it.

    python -m loadtest.meter_cost [--minutes 20] [--rate 200]

A real server under one steady load. For the share of a core the node process's CPU time is read from /proc, over a
minute without scrapes and over one with a scrape every 15 seconds. Then it is stopped (SIGSTOP) but for 50 ms every
1.1 s. Its tick being overdue, it does it in these: it asks the replicas, reads the meters, and settles and persists
what is due. Replicas do not notice so short a silence. Only requests under way in those 50 ms can be slower for it;
they are held against those of the 50 ms half-way between two of them, in which it stayed stopped (see
`loadtest.moments`). Given are percentiles with a tick every second and with none, and their ratio with a 95 % bootstrap
interval over pairs of neighbours.

What a replica counts of each request (additions to a table, no waiting) is on both sides.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import uvloop

from loadtest.demo_family import compile_demo_family
from loadtest.moments import Moment, percentiles, ratio, sort
from loadtest.open_loop import OpenLoop
from loadtest.served import Served, serve
from loadtest.texts import read_questions
from models.store import write_atomic

TARGETS = {"share_of_a_core": 0.001, "p99_ratio": 0.01}
SHARES = (0.5, 0.99)
WARM_UP_S = 10.0
SHARE_S = 60.0
SCRAPE_S = 15.0
SLOT_S = 1.1
"""Ticks come once a second, so one is overdue by then."""
GO_S = 0.05
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


async def moments(pid: int, minutes: float) -> tuple[list[Moment], float]:
    """Keep the process stopped but for the moments in which it may do a tick. These, as many in which it may not, and
    its CPU seconds in one of the former."""
    found, spent_ns, slots = list[Moment](), 0, round(minutes * 60 / SLOT_S)
    os.kill(pid, signal.SIGSTOP)
    try:
        for number in range(slots):
            before_ns = cpu_ns(pid)
            for happens in (True, False):
                began = time.perf_counter()
                if happens:
                    os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(GO_S)
                if happens:
                    os.kill(pid, signal.SIGSTOP)
                ended = time.perf_counter()
                await asyncio.sleep(began + SLOT_S / 2 - ended)
                found.append(Moment(began, ended, time.perf_counter(), happens, number))
            spent_ns += cpu_ns(pid) - before_ns
    finally:  # also where SIGTERM ends the run (`serve` sees to that): a process left stopped would never end
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return found, spent_ns / _NS / max(slots, 1)


async def run(served: Served, pid: int, given: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison under one load."""
    loop = OpenLoop("127.0.0.1", served.port, read_questions(given.questions))
    seconds = WARM_UP_S + 2 * SHARE_S + given.minutes * 60
    load = asyncio.create_task(loop.offer(given.rate, seconds))
    await asyncio.sleep(WARM_UP_S)
    shares = [await share_of_a_core(pid, url) for url in (None, served.metrics_url)]
    spans, cpu_seconds = await moments(pid, given.minutes)
    reached = await load
    loop.close()
    ordered = sort(loop.outcomes, spans)
    ratios = {f"p{round(100 * q)}_ratio": [round(x, 4) for x in ratio(ordered, q)] for q in SHARES}
    return {
        "share_of_a_core": round(shares[0], 6),
        "share_of_a_core_scraped": round(shares[1], 6),
        "cpu_seconds_of_a_moment": round(cpu_seconds, 6),
        **{f"p{round(100 * q)}_ms": [round(ms, 3) for ms in percentiles(ordered, q)] for q in SHARES},
        **{name: found[0] for name, found in ratios.items()},
        **{f"{name}_interval": found[1:] for name, found in ratios.items()},
        "requests": len(ordered.latency_ms),
        "requests_at_moments": ordered.within,
        "moments": len(spans),
        "reached_a_second": round(reached, 1),
        "load_average": round(os.getloadavg()[0], 2),
    }


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Start a server and compare; pairs of figures are with the meter and without it."""
    settings = {"model.store": given.store, "cache.enabled": "false"}
    with serve(Path("var/meter-cost"), settings) as served:
        pid = int(httpx.get(f"{served.metrics_url}/healthz", timeout=10).json()["pid"])
        found = uvloop.run(run(served, pid, given))
    command = f"python -m loadtest.meter_cost --minutes {given.minutes:g} --rate {given.rate:g}"
    return {"command": command, **found}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--questions", type=Path, default=Path("var/energy-questions.csv"))
    parser.add_argument("--minutes", type=float, default=20.0)
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
