"""The parts of a run: load, low rates, idling, the cache, the floor."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families

from loadtest.bench.crew import until
from loadtest.bench.plan import Plan, times_s
from loadtest.bench.results import AtRate, CacheRound, Load, Rest
from loadtest.client import percentile
from loadtest.floor import Floor
from loadtest.paced_client import run_paced
from loadtest.peers.contestant import Running
from loadtest.tree import TreeUse, read_tree
from loadtest.wire_client import Tally, run_closed_loop

LOAD_TIMEOUT_S = 180.0
SETTLED_S = 2.5
"""The node process settles its counters within this."""
HOT_TEXTS = 256


@dataclass(frozen=True)
class Model:
    """What is measured: a point of a published family."""

    store: Path
    family: str
    point: str


def floor_of(model: Model, texts: Path, count: int, rows: Sequence[int]) -> Floor:
    """The floor, in a process of its own."""
    command = [sys.executable, "-m", "loadtest.floor", str(model.store), model.family, str(texts)]
    command += ["--point", model.point, "--limit", str(count), "--rows", *map(str, rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=600)
    return Floor(**orjson.loads(done.stdout))


def _spent(before: TreeUse, after: TreeUse, tally: Tally) -> tuple[float, dict[str, float]]:
    per_1k = 1000 / max(1, len(tally.latencies_s))
    return after.since(before) * per_1k, {name: cpu * per_1k for name, cpu in after.by_name_since(before).items()}


def _closed(running: Running, texts: Sequence[str], clients: int, seconds: float | None) -> tuple[Tally, float]:
    """The run and its CPU-seconds per 1,000 answers; each text once, or as often as `seconds` allow."""
    source = texts if seconds is None else itertools.cycle(texts)
    requests = (running.request(text) for text in source)
    before = read_tree(running.pid)
    bounded = requests if seconds is None else until(requests, seconds, time.perf_counter)
    tally = run_closed_loop("127.0.0.1", running.port, bounded, clients, LOAD_TIMEOUT_S)
    return tally, _spent(before, read_tree(running.pid), tally)[0]


def load(name: str, running: Running, texts: Sequence[str], mix: str, clients: int, seconds: float) -> Load:
    """Ask with `clients` for `seconds`. Raises TimeoutError if the answers do not come."""
    requests = until((running.request(text) for text in itertools.cycle(texts)), seconds, time.perf_counter)
    before = read_tree(running.pid)
    tally = run_closed_loop("127.0.0.1", running.port, requests, clients, LOAD_TIMEOUT_S)
    cpu, by_process = _spent(before, read_tree(running.pid), tally)
    return Load(
        contestant=name,
        mix=mix,
        clients=clients,
        cpu_seconds_per_1k=cpu,
        requests_per_second=len(tally.latencies_s) / tally.wall_s,
        p50_ms=percentile(tally.latencies_s, 0.5) * 1e3,
        p95_ms=percentile(tally.latencies_s, 0.95) * 1e3,
        p99_ms=percentile(tally.latencies_s, 0.99) * 1e3,
        replies=tally.replies,
        failures=tally.failures,
        by_process=by_process,
    )


def at_rate(name: str, running: Running, texts: Sequence[str], rate_per_s: float, seconds: float, seed: int) -> AtRate:
    """Ask at a fixed mean rate for `seconds`; what the tree spends in the gaps counts too."""
    requests = [running.request(text) for text in itertools.islice(itertools.cycle(texts), round(rate_per_s * seconds))]
    started = time.perf_counter()
    before = read_tree(running.pid)
    tally = run_paced("127.0.0.1", running.port, requests, times_s(rate_per_s, seconds, seed))
    time.sleep(max(0.0, started + seconds - time.perf_counter()))
    cpu, _ = _spent(before, read_tree(running.pid), tally)
    latencies = tally.latencies_s
    return AtRate(
        name, rate_per_s, cpu, percentile(latencies, 0.5) * 1e3, percentile(latencies, 0.99) * 1e3, tally.failures
    )


def idle(crew: dict[str, Running], seconds: float) -> list[Rest]:
    """What trees spend and hold when nothing is asked, all in the same window."""
    started = time.perf_counter()
    before = {name: read_tree(one.pid) for name, one in crew.items()}
    time.sleep(seconds)
    rests = []
    for name, one in crew.items():
        after = read_tree(one.pid, memory=True)
        per_minute = 60 / (time.perf_counter() - started)
        rests.append(
            Rest(
                contestant=name,
                ready_s=one.ready_s,
                start_cpu_seconds=one.start_cpu_seconds,
                idle_cpu_seconds_per_minute=after.since(before[name]) * per_minute,
                pss_mb=after.pss_bytes / 1e6,
                by_process={key: cpu * per_minute for key, cpu in after.by_name_since(before[name]).items()},
            )
        )
    return rests


def cache_round(
    name: str, running: Running, texts: Sequence[str], repeated: Sequence[str], plan: Plan, ask_all: int
) -> CacheRound:
    """Distinct texts, then other texts repeated, then nothing but hits, from `ask_all` clients with the cache on.

    `texts` and `repeated` must be new to the server's cache.
    """
    _, unique = _closed(running, texts, ask_all, None)
    before = answers(running)
    _, repetitive = _closed(running, repeated, ask_all, None)
    computed, cached = (after - past for after, past in zip(answers(running), before, strict=True))
    hot = list(dict.fromkeys(repeated))[:HOT_TEXTS]
    _closed(running, hot, ask_all, None)
    tally, hit = _closed(running, hot, ask_all, plan.cell_seconds)
    grpc = grpc_hits(running, hot, ask_all, len(tally.latencies_s))
    return CacheRound(name, unique, repetitive, cached / max(1.0, computed + cached), hit, grpc)


def grpc_hits(running: Running, hot: Sequence[str], clients: int, count: int) -> float | None:
    """CPU-seconds per 1,000 cache hits over gRPC; None without grpcio or where the server has no gRPC port."""
    if running.grpc_port is None or importlib.util.find_spec("grpc") is None:
        return None
    from loadtest import grpc_client

    target, channels = f"127.0.0.1:{running.grpc_port}", min(4, clients)
    grpc_client.run_closed_loop(target, hot, clients, channels, LOAD_TIMEOUT_S)
    asked = list(itertools.islice(itertools.cycle(hot), count))
    before = read_tree(running.pid)
    tally = grpc_client.run_closed_loop(target, asked, clients, channels, LOAD_TIMEOUT_S)
    return _spent(before, read_tree(running.pid), tally)[0]


def answers(running: Running, sleep: Callable[[float], None] = time.sleep) -> tuple[float, float]:
    """Texts computed and texts answered from the cache (or by an equal one in flight) since the start, settled."""
    if running.metrics_url is None:
        raise ValueError("the contestant has no metrics")
    sleep(SETTLED_S)
    text = httpx.get(f"{running.metrics_url}/metrics", timeout=10).raise_for_status().text
    totals = {"ok": 0.0, "cached": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "jouleserve_requests_total" and sample.labels["outcome"] in totals:
                totals[sample.labels["outcome"]] += sample.value
    return totals["ok"], totals["cached"]
