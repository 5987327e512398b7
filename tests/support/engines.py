"""An engine around the tiny family, with parts that record what happens and parts that wait for permission."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from server.engine.engine import Answer, Engine, EngineLimits
from server.engine.family import Family
from server.engine.runs import BatchRecord
from server.engine.runtime import Float32Array, Runtime
from server.engine.tokenizer import Text, Tokens
from server.shaping.policy import DialState, QualityClass

WAIT_S = 20.0
POINTS = ("full", "lite", "nano")
"""The operating points of the tiny family, best first."""


def dial(standard: str = "full", eco: str = "nano", version: int = 0) -> DialState:
    """A dial of the tiny family; strict is full quality, as always."""
    points = {"strict": "full", "standard": standard, "eco": eco}
    return DialState(points, {"strict": "strict", "standard": "pin", "eco": "eco"}, version)  # type: ignore[arg-type]


@dataclass
class RecordingUsage:
    """A UsageSink that keeps everything."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    batches: list[tuple[int, int, int]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    avoided_ns: Counter[str] = field(default_factory=Counter)
    traces: list[tuple[str, str, str, int, int]] = field(default_factory=list)

    def request(
        self, variant: str, point: str, quality: str, outcome: str, cpu_ns: int, **durations: int | None
    ) -> None:
        """Keep it."""
        kept = {"variant": variant, "point": point, "quality": quality, "outcome": outcome, "cpu_ns": cpu_ns}
        self.requests.append({**kept, **durations})

    def batch(self, variant: str, rows: int, tokens: int, padded_tokens: int, *, infer_ns: int, cpu_ns: int) -> None:
        """Keep it."""
        self.batches.append((rows, tokens, padded_tokens))

    def count(self, name: str, amount: int = 1) -> None:
        """Keep it."""
        self.counts[name] += amount

    def avoided(self, reason: str, cpu_ns: int) -> None:
        """Keep it."""
        self.avoided_ns[reason] += cpu_ns

    def traced(self, trace_id: str, variant: str, quality: str, total_ns: int, cpu_ns: int) -> None:
        """Keep it."""
        self.traces.append((trace_id, variant, quality, total_ns, cpu_ns))

    @property
    def outcomes(self) -> Counter[str]:
        """How many texts ended in which way."""
        return Counter(request["outcome"] for request in self.requests)


class GatedRuntime:
    """A real runtime behind a gate: it records the rows it is given, and runs while the gate is open."""

    def __init__(self, inner: Runtime) -> None:
        self._inner = inner
        self.rows: list[list[int]] = []
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, batch: Sequence[Tokens]) -> Float32Array:
        """Wait for the gate, then run."""
        self.batches.append(len(batch))
        self.rows.extend(tokens.ids for tokens in batch)
        assert self.gate.wait(WAIT_S)
        return self._inner.run(batch)


def gated(family: Family) -> tuple[Family, dict[str, GatedRuntime]]:
    """The family with a gate before each of its runtimes."""
    gates = {name: GatedRuntime(runtime) for name, runtime in family.runtimes.items()}
    return replace(family, runtimes=dict(gates)), gates


class WatchedEngine(Engine):
    """An engine whose batches can be looked at."""

    def _record_batch(self, record: BatchRecord) -> None:
        self.__dict__.setdefault("records", []).append(record)
        super()._record_batch(record)

    @property
    def batch_cpu_ns(self) -> int:
        """CPU time of all batches so far."""
        return sum(record.cpu_ns for record in self.__dict__.get("records", []))


@asynccontextmanager
async def running(
    family: Family, *, standard: str = "full", eco: str = "nano", workers: int = 1, **limits: Any
) -> AsyncIterator[tuple[WatchedEngine, RecordingUsage]]:
    """An engine and what it reports; closed at the end."""
    usage = RecordingUsage()
    engine = WatchedEngine(family, EngineLimits(**limits), dial(standard, eco), usage, workers)
    try:
        yield engine, usage
    finally:
        await engine.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until the condition holds; fails after a while."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (what is waited for happens in threads, too)
            await asyncio.sleep(0.001)


async def ask(engine: WatchedEngine, *texts: str, quality: QualityClass = "standard") -> list[Answer]:
    """The answers to single texts in one request."""
    return await engine.predict([Text(text) for text in texts], quality=quality)


async def ask_one(engine: WatchedEngine, text: str, quality: QualityClass = "standard") -> Answer:
    """The answer to one text."""
    (answer,) = await ask(engine, text, quality=quality)
    return answer
