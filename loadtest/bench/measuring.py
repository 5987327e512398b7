"""The parts of a run: load, low rates, idling, the cache, the floor."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families

from loadtest.bench.crew import until
from loadtest.bench.plan import Plan, times_s
from loadtest.bench.results import AtRate, CacheRound, Load, Rest
from loadtest.client import percentile
from loadtest.floor import Floor, Slice
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


class FloorBeside:
    """The floor of one mix of texts, in a process of its own that waits between slices. Use as a context manager."""

    def __init__(self, model: Model, texts: Path, count: int, rows: Sequence[int]) -> None:
        command = [sys.executable, "-m", "loadtest.floor", str(model.store), model.family, str(texts), "--slices"]
        command += ["--point", model.point, "--limit", str(count), "--rows", *map(str, rows)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.whole = Floor(**self._read())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)

    def slice(self, clients: int, count: int) -> Slice:
        """`count` texts: one at a time for one client, else in the best batches."""
        assert self._process.stdin is not None
        rows = 1 if clients == 1 else self.whole.rows
        self._process.stdin.write(f"{rows} {count}\n".encode())
        self._process.stdin.flush()
        return Slice(**self._read())

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the floor's process ended; its words are above")
        found: dict[str, Any] = orjson.loads(line)
        return found


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


@dataclass
class _Piece:
    """What one slice of load took."""

    tally: Tally
    cpu_seconds_per_1k: float
    by_process: dict[str, float]


def load(
    name: str, running: Running, floor: FloorBeside, texts: Sequence[str], mix: str, clients: int, plan: Plan
) -> Load:
    """Ask with `clients` in slices, each between two of the floor. Raises TimeoutError if answers do not come."""
    source = itertools.cycle(texts)
    pieces, beside = [], [floor.slice(clients, plan.floor_slice_texts)]
    for _ in range(plan.slices):
        pieces.append(_piece(running, source, clients, plan.slice_seconds))
        beside.append(floor.slice(clients, plan.floor_slice_texts))
    latencies = [latency for piece in pieces for latency in piece.tally.latencies_s]
    bare_s = [latency / 1e3 for one in beside for latency in one.latencies_ms]
    return Load(
        contestant=name,
        mix=mix,
        clients=clients,
        cpu_seconds_per_1k=fmean(piece.cpu_seconds_per_1k for piece in pieces),
        over_floor=[
            piece.cpu_seconds_per_1k * 2 / (before.cpu_seconds_per_1k + after.cpu_seconds_per_1k)
            for piece, before, after in zip(pieces, beside, beside[1:], strict=False)
        ],
        requests_per_second=len(latencies) / sum(piece.tally.wall_s for piece in pieces),
        p50_ms=percentile(latencies, 0.5) * 1e3,
        p95_ms=percentile(latencies, 0.95) * 1e3,
        p99_ms=percentile(latencies, 0.99) * 1e3,
        bare_p99_ms=percentile(bare_s, 0.99) * 1e3 if clients == 1 else None,
        replies=sum(piece.tally.replies for piece in pieces),
        failures=dict(sum((Counter(piece.tally.failures) for piece in pieces), Counter())),
        by_process={name: fmean(piece.by_process.get(name, 0.0) for piece in pieces) for name in pieces[0].by_process},
    )


def _piece(running: Running, texts: Iterator[str], clients: int, seconds: float) -> _Piece:
    requests = until((running.request(text) for text in texts), seconds, time.perf_counter)
    before = read_tree(running.pid)
    tally = run_closed_loop("127.0.0.1", running.port, requests, clients, LOAD_TIMEOUT_S)
    return _Piece(tally, *_spent(before, read_tree(running.pid), tally))


def at_rate(
    name: str, running: Running, floor: FloorBeside, texts: Sequence[str], rate_per_s: float, plan: Plan, seed: int
) -> AtRate:
    """Ask at a fixed mean rate; what the tree spends in the gaps counts too."""
    seconds = plan.rate_seconds
    requests = [running.request(text) for text in itertools.islice(itertools.cycle(texts), round(rate_per_s * seconds))]
    floor_before = floor.slice(1, plan.floor_slice_texts)
    started = time.perf_counter()
    before = read_tree(running.pid)
    tally = run_paced("127.0.0.1", running.port, requests, times_s(rate_per_s, seconds, seed))
    time.sleep(max(0.0, started + seconds - time.perf_counter()))
    cpu, _ = _spent(before, read_tree(running.pid), tally)
    floor_after = floor.slice(1, plan.floor_slice_texts)
    latencies = tally.latencies_s
    return AtRate(
        contestant=name,
        rate_per_s=rate_per_s,
        cpu_seconds_per_1k=cpu,
        over_floor=cpu / fmean((floor_before.cpu_seconds_per_1k, floor_after.cpu_seconds_per_1k)),
        p50_ms=percentile(latencies, 0.5) * 1e3,
        p99_ms=percentile(latencies, 0.99) * 1e3,
        failures=tally.failures,
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
    tally, hit = _closed(running, hot, ask_all, plan.slice_seconds * plan.slices)
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
