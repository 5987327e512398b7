"""`make bench`: what the server adds to raw ONNX Runtime, measured in one interleaved run.

Every round measures the floor, then the server at each number of clients, on the same texts; the ratios are taken
within a round and their median is quoted. CPU-seconds of the whole process tree per 1,000 requests stand in for joules.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from loadtest.client import Question, percentile
from loadtest.demo_family import FAMILY, compile_demo_family
from loadtest.served import Served, serve
from loadtest.texts import read_questions
from loadtest.tree import read_tree
from loadtest.wire_client import run_closed_loop
from models.store import write_atomic

LOAD_TIMEOUT_S = 300.0
SETTLE_S = 20.0

console = Console()


def floor_of(options: argparse.Namespace, texts: Path) -> float:
    """CPU-seconds per 1,000 texts without a server."""
    command = [sys.executable, "-m", "loadtest.floor", str(options.store), options.family, str(texts)]
    command += ["--point", options.point, "--limit", str(options.requests)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=600)
    figure: float = orjson.loads(done.stdout)["cpu_seconds_per_1k"]
    return figure


def load(served: Served, questions: Sequence[Question], clients: int) -> dict[str, Any]:
    """One run at `clients` clients: CPU of the server's tree and latencies. Raises RuntimeError on a failed reply."""
    before = read_tree(served.process.pid)
    tally = run_closed_loop("127.0.0.1", served.port, questions, clients, LOAD_TIMEOUT_S)
    after = read_tree(served.process.pid)
    if tally.failures:
        raise RuntimeError(f"requests failed, by status: {tally.failures}")
    per_1k = 1000 / tally.replies
    return {
        "cpu_seconds_per_1k": after.since(before) * per_1k,
        "by_process": {name: cpu * per_1k for name, cpu in after.by_name_since(before).items()},
        "requests_per_second": tally.replies / tally.wall_s,
        "p50_ms": percentile(tally.latencies_s, 0.5) * 1e3,
        "p99_ms": percentile(tally.latencies_s, 0.99) * 1e3,
    }


def idle(served: Served, seconds: float) -> dict[str, Any]:
    """CPU-seconds a minute of the tree when nothing is asked, and its memory."""
    before = read_tree(served.process.pid)
    started = time.perf_counter()
    time.sleep(seconds)
    wall = time.perf_counter() - started
    after = read_tree(served.process.pid, memory=True)
    per_minute = 60 / wall
    return {
        "cpu_seconds_per_minute": after.since(before) * per_minute,
        "by_process": {name: cpu * per_minute for name, cpu in after.by_name_since(before).items()},
        "pss_mib": after.pss_bytes / 2**20,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds."""
    questions = [Question(q.text, options.quality) for q in read_questions(options.texts)[: options.requests]]
    rounds: list[dict[str, Any]] = []
    settings = {"model.store": options.store, "model.family": options.family, "cache.enabled": "false"}
    settings.update(pair.split("=", 1) for pair in options.settings)
    with serve(options.folder, settings) as served:
        load(served, questions[:200], 8)
        for number in range(options.rounds):
            console.print(f"round {number + 1} of {options.rounds}")
            one: dict[str, Any] = {"floor": floor_of(options, options.texts)}
            for clients in options.clients:
                share = questions if clients > 1 else questions[: max(200, len(questions) // 4)]
                one[str(clients)] = load(served, share, clients)
            rounds.append(one)
        console.print(f"idle for {options.idle_seconds:g} s")
        time.sleep(SETTLE_S)
        resting = idle(served, options.idle_seconds)
    return {"rounds": rounds, "idle": resting, "settings": vars(options), "machine": machine()}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    rounds = result["rounds"]
    floors = [one["floor"] for one in rounds]
    table = Table("clients", "CPU-s / 1,000", "x floor (median)", "min - max", "requests/s", "p50 ms", "p99 ms")
    table.add_row("floor", f"{statistics.median(floors):.2f}", "1.00", "", "", "", "")
    for clients in [key for key in rounds[0] if key != "floor"]:
        runs = [one[clients] for one in rounds]
        ratios = [run["cpu_seconds_per_1k"] / floor for run, floor in zip(runs, floors, strict=True)]
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "by_process"}
        table.add_row(
            clients,
            f"{middle['cpu_seconds_per_1k']:.2f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} - {max(ratios):.2f}",
            f"{middle['requests_per_second']:.0f}",
            f"{middle['p50_ms']:.1f}",
            f"{middle['p99_ms']:.1f}",
        )
    console.print(table)
    resting = result["idle"]
    console.print(
        f"idle: {resting['cpu_seconds_per_minute']:.2f} CPU-seconds a minute, "
        f"{resting['pss_mib']:.0f} MiB (PSS) in the whole tree"
    )
    for name, cpu in list(resting["by_process"].items())[:8]:
        console.print(f"  {name:<32} {cpu:.2f}", highlight=False)


TARGETS = {"x floor at 64 clients": 1.40, "idle CPU-seconds a minute": 5.0}


def judge(result: dict[str, Any]) -> bool:
    """Print what was aimed at beside what was reached; True if all of it was."""
    reached = {"idle CPU-seconds a minute": result["idle"]["cpu_seconds_per_minute"]}
    ratios = [one["64"]["cpu_seconds_per_1k"] / one["floor"] for one in result["rounds"] if "64" in one]
    if ratios:
        reached["x floor at 64 clients"] = statistics.median(ratios)
    for name, figure in reached.items():
        verdict = "met" if figure <= TARGETS[name] else "MISSED"
        console.print(f"{name}: {figure:.2f}, at most {TARGETS[name]:g} wanted: {verdict}")
    return all(figure <= TARGETS[name] for name, figure in reached.items())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--family", default=FAMILY)
    parser.add_argument("--point", default="full")
    parser.add_argument("--quality", default="strict", help="class to ask in; strict is always the full point")
    parser.add_argument("--texts", type=Path, help=".csv, .parquet or .txt with distinct texts (default: the demo's)")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--idle-seconds", type=float, default=60)
    parser.add_argument("--folder", type=Path, default=Path("var/bench"))
    parser.add_argument("--set", dest="settings", action="append", default=[], help="a server setting, key=value")
    options = parser.parse_args()
    if options.texts is None:
        options.texts = options.folder / "questions.csv"
        compile_demo_family(options.store, options.texts)
    result = measure(options)
    out = options.folder / "bench.json"
    write_atomic(out, json.dumps(result, indent=1, default=str).encode())
    show(result)
    met = judge(result)
    console.print(f"all figures: {out}")
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
