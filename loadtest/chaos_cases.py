"""What befalls a server, and what is asked of it: each case returns its figures. See `loadtest.chaos`."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from loadtest.client import Question, percentile
from loadtest.demo_tables import read_metrics
from loadtest.http import HTTP
from loadtest.open_loop import Outcome, encode, offer
from loadtest.served import Served
from loadtest.standing import (
    Answer,
    Counters,
    Figure,
    ask_steadily,
    at_least,
    at_most,
    load,
    only,
    statuses,
)
from loadtest.wire_client import run_closed_loop
from models.store import Store

REFUSED_WITHIN_MS = 50.0
BACK_TO_NORMAL_WITHIN_S = 5.0
SWITCH_TIMEOUT_S = 60.0
BUSY_REQUESTS, BUSY_TEXTS = 3, 24
MOST_BUSY_REQUESTS = 1000
TOLD_APART_BY = 0.1
"""Versions are told apart by texts whose scores differ so much; batch-mates shift int8 scores by some hundredths."""


@dataclass(frozen=True)
class Place:
    """Where a server's files are, for the commands that an operator would type."""

    store: Path
    family: str
    run_dir: Path

    def jouleserve(self, *words: str) -> None:
        """Run the command. Raises subprocess.CalledProcessError."""
        sets = {"model.store": self.store, "model.family": self.family, "server.run_dir": self.run_dir}
        command = [sys.executable, "-m", "server.cli", *words]
        for key, value in sets.items():
            command += ["--set", f"{key}={value}"]
        subprocess.run(command, check=True, capture_output=True, timeout=SWITCH_TIMEOUT_S)


def info(served: Served) -> dict[str, object]:
    """`/info`."""
    found: dict[str, object] = HTTP.get(f"{served.url}/info", timeout=30).json()
    return found


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Seconds until the condition held. Raises TimeoutError."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout_s:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - started


# Overload


def capacity(served: Served, questions: Sequence[Question], requests: int, clients: int = 32) -> float:
    """Requests a second that a closed loop gets answered."""
    host = f"127.0.0.1:{served.port}"
    asked = itertools.islice(itertools.cycle(questions), requests)
    tally = run_closed_loop("127.0.0.1", served.port, [encode(q, host) for q in asked], clients, 300)
    return len(tally.latencies_s) / tally.wall_s


def overload(
    served: Served, questions: Sequence[Question], *, seconds: float, times: float, objective_ms: float, requests: int
) -> list[Figure]:
    """An open loop at `times` the capacity: who is accepted is answered in time, who is not learns it at once."""
    case = f"overload {times:g}x"
    most_queued = int(str(info(served)["max_concurrent_requests"]))
    found = capacity(served, questions, requests)
    calm_ms = _lone_latency_ms(served, questions)
    depths: list[float] = []
    with _sampled(lambda: depths.append(_queue_depth(served))):
        outcomes, reached = offer("127.0.0.1", served.port, questions, times * found, seconds)
    back_s = _back_to_normal(served, questions, max(3 * calm_ms, 50.0))
    accepted = [1e3 * one.latency_s for one in outcomes if one.status == 200]
    refused = [one for one in outcomes if one.status == 429]
    refused_ms = percentile([1e3 * one.latency_s for one in refused], 0.99) if refused else 0.0
    told = sum(one.retry_after for one in refused)
    return [
        at_least(case, "offered, of the capacity", reached / found, 0.9 * times),
        only(case, "statuses", _count(outcomes), {200, 429}),
        at_most(case, "p99 of the refused", refused_ms, REFUSED_WITHIN_MS, " ms"),
        Figure(case, "with Retry-After", f"{told:,} of {len(refused):,}", "all", told == len(refused)),
        at_most(case, "p99 of the accepted", percentile(accepted, 0.99), 1.5 * objective_ms, " ms"),
        at_least(case, "answered, of the capacity", len(accepted) / seconds / found, 0.6),
        at_most(case, "longest queue", max(depths, default=0.0), most_queued),
        at_most(case, "back to normal after", back_s, BACK_TO_NORMAL_WITHIN_S, " s"),
    ]


def _count(outcomes: Sequence[Outcome]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for one in outcomes:
        counts[one.status] = counts.get(one.status, 0) + 1
    return counts


def _queue_depth(served: Served) -> float:
    return read_metrics(served.metrics_url).total("jouleserve_queue_depth")


def _lone_latency_ms(served: Served, questions: Sequence[Question], tries: int = 20) -> float:
    """Median of requests that come one by one."""
    with httpx.Client(timeout=30) as client:
        found = []
        for question in itertools.islice(itertools.cycle(questions), tries):
            started = time.perf_counter()
            client.post(f"{served.url}/predict", json={"inputs": question.text, "truncate": True})
            found.append(1e3 * (time.perf_counter() - started))
    return percentile(found, 0.5)


def _back_to_normal(served: Served, questions: Sequence[Question], limit_ms: float) -> float:
    """Seconds until five lone requests in a row were as fast as before; infinity after four times the limit."""
    started = time.monotonic()
    while time.monotonic() - started < 4 * BACK_TO_NORMAL_WITHIN_S:
        if _lone_latency_ms(served, questions, tries=5) <= limit_ms:
            return time.monotonic() - started
    return float("inf")


@contextmanager
def _sampled(sample: Callable[[], None]) -> Iterator[None]:
    """Call `sample` about once a second for as long as the block lasts."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(1.0):
            with suppress(httpx.HTTPError):
                sample()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(30)


# Versions and settings


def second_version(store: Store, family: str) -> tuple[str, str]:
    """Publish a version whose first variant is the file of the last one, and make the first current again. Returns
    both names. Raises ValueError if the family has but one variant."""
    first = store.open(family)
    variants = first.manifest.variants
    if len(variants) < 2:
        raise ValueError(f"{family}: has one variant; give a family with two")
    served = [point.variant for point in first.manifest.points]
    last = first.manifest.variant(served[-1]).model
    changed = tuple(one.model_copy(update={"model": last}) if one.name == served[0] else one for one in variants)
    second = store.publish(first.manifest.model_copy(update={"variants": changed}), first.path)
    store.set_current(family, first.name)
    return first.name, second.name


def copy_store(store: Path, family: str, target: Path) -> Store:
    """A store of its own with the current version of the family."""
    version = Store(store).open(family)
    shutil.copytree(version.path, target / family / version.name)
    copied = Store(target)
    copied.set_current(family, version.name)
    return copied


def versions(
    served: Served, place: Place, names: tuple[str, str], questions: Sequence[Question], *, requests: int, rounds: int
) -> list[Figure]:
    """Publish and roll back under steady load: every request is answered, and by one version alone."""
    case = "publish and roll back"
    strict = [Question(question.text, "strict") for question in questions]
    expected = {}
    for name in reversed(names):
        _switch(served, place, name)
        answers = asyncio.run(ask_steadily(f"{served.url}/predict", iter(strict), 4, lambda: False))
        expected[name] = {answer.text: answer.scores for answer in answers}
    first, second = (expected[name] for name in names)
    apart = [q for q in strict if _distance(first[q.text], second[q.text]) >= TOLD_APART_BY]
    if not apart:
        raise ValueError("no text tells the two versions apart; give other texts")
    took: list[float] = []
    with load(served, itertools.cycle(apart), 8) as answers:
        for name in [name for _ in range(rounds) for name in reversed(names)]:
            time.sleep(0.5)
            took.append(_switch(served, place, name))
    while len(answers) < requests:
        rest = itertools.islice(itertools.cycle(apart), requests - len(answers))
        answers += asyncio.run(ask_steadily(f"{served.url}/predict", rest, 8, lambda: False))
    mixed = sum(answer.status == 200 and _version_of(answer, expected) != answer.version for answer in answers)
    seen = {answer.version for answer in answers if answer.status == 200}
    return [
        only(case, f"statuses of {len(answers):,}", statuses(answers), {200}),
        at_most(case, "answers of a mixture", mixed, 0),
        Figure(case, "versions that answered", str(len(seen)), "2", len(seen) == 2),
        at_most(case, f"slowest of {len(took)} switches", max(took), 30, " s"),
    ]


def _version_of(answer: Answer, expected: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The version whose scores the answer's are closest to."""
    return min(expected, key=lambda name: _distance(answer.scores, expected[name][answer.text]))


def _switch(served: Served, place: Place, name: str) -> float:
    Store(place.store).set_current(place.family, name)  # what `jouleserve models use` does
    return wait_for(lambda: info(served)["model_sha"] == name, SWITCH_TIMEOUT_S, f"{name} serves")


def _distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    return max((abs(one[label] - other.get(label, 0.0)) for label in one), default=0.0)


def settings(served: Served, place: Place, questions: Sequence[Question], *, changes: int) -> list[Figure]:
    """Change settings under steady load."""
    case = "settings"
    with load(served, itertools.cycle(questions), 8) as answers:
        for number in range(changes):
            rows = 3 + number % 5
            place.jouleserve("tune", f"batching.max_rows={rows}", f"batching.max_tokens={512 + 64 * rows}")
            wait_for(
                lambda wanted=rows: info(served)["max_batch_requests"] == wanted,  # type: ignore[misc]
                SWITCH_TIMEOUT_S,
                "the change is taken",
            )
    return [only(case, f"statuses of {len(answers):,}", statuses(answers), {200})]


# Ends


def stop_under_load(
    served: Served, questions: Sequence[Question], *, number: signal.Signals, within_s: float
) -> list[Figure]:
    """A signal under load: what was accepted is answered, then the server ends. It is gone afterwards.

    Every request has a connection of its own: one that nobody accepted any more was not accepted. Those sent in the
    last moments before the signal may be in the kernel's hands only, and count as accepted all the same.
    """
    case = number.name
    with load(served, itertools.cycle(questions), 16, keep_alive=False, pause_s=0.01) as answers:
        time.sleep(2)
        told_s = time.perf_counter()
        served.process.send_signal(number)
        served.process.wait(max(60.0, 2 * within_s))
        took_s = time.perf_counter() - told_s
    before = [answer for answer in answers if answer.sent_s < told_s]
    after = [answer for answer in answers if answer.sent_s >= told_s]
    return [
        only(case, f"statuses of the {len(before):,} sent before", statuses(before), {200}),
        only(case, "statuses of those sent after", statuses(after), {200, 503, 0}),
        at_most(case, "exit after", took_s, within_s, " s"),
        Figure(case, "exit code", str(served.process.returncode), "0", served.process.returncode == 0),
    ]


def kills(served: Served, questions: Sequence[Question], *, seconds: float, every_s: float) -> list[Figure]:
    """SIGKILL of a replica again and again; clients ask once more where no answer came."""
    case = f"SIGKILL every {every_s:g} s"
    counters = Counters(served.metrics_url)
    killed: list[int] = []
    with load(served, itertools.cycle(questions), 4, retries=1, pause_s=0.02) as answers:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            next_kill = time.monotonic() + every_s
            while time.monotonic() < next_kill:
                counters.read()
                time.sleep(1)
            victim = _replica(served)
            if victim is not None:
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
    good = sum(answer.status == 200 for answer in answers)
    return [
        only(case, "statuses after one retry", statuses(answers), {200, 503, 0}),
        at_least(case, "replicas killed", len(killed), 0.8 * seconds / every_s - 1),
        at_least(case, f"answered of {len(answers):,}, one retry", good / len(answers), 0.999),
        at_most(case, "counters that went back", len(counters.fallen), 0),
    ]


def _replica(served: Served) -> int | None:
    """The replica that happens to answer."""
    try:
        return int(str(info(served)["pid"]))
    except (httpx.HTTPError, ValueError, KeyError):
        return None


# Clients that misbehave


def poison(served: Served, good: Sequence[Question], bad: Question, *, bursts: int) -> list[Figure]:
    """One text in a burst of 32 that the model cannot take: it fails, and nobody else."""
    case = "poison"
    chance = random.Random(1)
    wrong = spoiled = 0
    for number in range(bursts):
        batch = [*good[32 * number : 32 * number + 31], bad] if len(good) >= 32 * bursts else [*good[:31], bad]
        chance.shuffle(batch)
        answers = asyncio.run(_burst(served, batch))
        spoiled += sum(answer.status != 200 for answer in answers if answer.text != bad.text)
        wrong += sum(answer.status not in (413, 422, 424) for answer in answers if answer.text == bad.text)
    return [
        at_most(case, f"others that failed in {bursts} bursts of 32", spoiled, 0),
        at_most(case, "poison that did not fail with 413, 422 or 424", wrong, 0),
    ]


async def _burst(served: Served, batch: Sequence[Question]) -> list[Answer]:
    return await ask_steadily(f"{served.url}/predict", iter(batch), len(batch), lambda: False, truncate=False)


def leaving(served: Served, questions: Sequence[Question], *, leavers: int) -> list[Figure]:
    """Clients that ask while the runtime is busy, and go: nothing is computed for them. Needs the cache off."""
    case = "clients that leave"
    rows_before, host = _rows(served), f"127.0.0.1:{served.port}"
    long = " ".join(question.text for question in questions[:8])
    left = threading.Event()

    def keep_busy(turn: int) -> int:
        """Texts answered until the clients have left; a request that is refused is sent again."""
        answered = 0
        for attempt in range(MOST_BUSY_REQUESTS):
            body = [[f"{long} {turn} {attempt} {number}"] for number in range(BUSY_TEXTS)]
            reply = HTTP.post(f"{served.url}/predict", json={"inputs": body, "truncate": True}, timeout=60)
            answered += BUSY_TEXTS if reply.status_code == 200 else 0
            if left.is_set():
                break
        return answered

    with ThreadPoolExecutor(BUSY_REQUESTS) as pool:
        keeping_busy = [pool.submit(keep_busy, turn) for turn in range(BUSY_REQUESTS)]
        wait_for(lambda: _queue_depth_now(served) > 0, 30, "the runtime is busy")
        for question in itertools.islice(itertools.cycle(questions), leavers):
            with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
                connection.sendall(encode(question, host))
        left.set()
        answered = sum(one.result() for one in keeping_busy)
    wait_for(lambda: _queue_depth_now(served) == 0, 30, "the queue is empty")
    time.sleep(2.5)  # until the node process has heard of it
    computed = _rows(served) - rows_before - answered
    return [
        at_least(case, "texts answered meanwhile", answered, BUSY_TEXTS),
        at_most(case, f"texts computed for {leavers} clients that left", computed, 0),
    ]


def _rows(served: Served) -> int:
    return int(read_metrics(served.metrics_url).total("jouleserve_batch_rows_sum"))


def _queue_depth_now(served: Served) -> int:
    return int(str(info(served)["queued"]))
