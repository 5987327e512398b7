"""Strict is never degraded: mixed requests with the cache on, through switches, divided dials, spikes and new versions.

`STRICT_REQUESTS=100000 pytest tests/server/engine/test_strict.py` is the full run. Replicas that are killed
under load are in `tests/served/test_shaping.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import replace

from server.engine.batching import BatchLimits
from server.engine.engine import Engine
from server.engine.errors import Overloaded
from server.engine.family import Family
from server.engine.tokenizer import Text
from server.shaping.policy import CLASSES, DialState
from server.shaping.sides import Split
from tests.support.engines import RecordingUsage, running
from tests.support.tiny_family import LABELS

REQUESTS = int(os.environ.get("STRICT_REQUESTS", "10000"))
CLIENTS = 32
TEXTS = 400
TURN_EVERY = 97
FULL_SCORES = (1.0, 10.0)
"""Of a label's word, by full quality of the two versions; `lite` and `nano` give a half and a quarter of it."""


def some_dial(chance: random.Random, version: int) -> DialState:
    points = {"strict": "full", "standard": chance.choice(["full", "lite", "nano"]), "eco": "nano"}
    split = Split("nano", 0.5) if points["standard"] == "lite" and chance.random() < 0.5 else None
    reasons = {"strict": "strict", "standard": "pin", "eco": "eco"}
    return DialState(points, reasons, version, split, chance.choice([None, "nano"]))  # type: ignore[arg-type]


class Mixture:
    """Clients that ask in all classes, while somebody turns the dial and changes versions under them."""

    def __init__(self, engine: Engine, versions: tuple[Family, Family]) -> None:
        self.engine, self.versions = engine, versions
        self.chance = random.Random(7)
        self.asked = self.turns = self.strict = self.refused = 0
        self.points: set[str] = set()
        self.wrong: list[str] = []

    def turn(self) -> None:
        """A new dial, at times together with the other version."""
        self.turns += 1
        objective_ns = self.chance.choice([None, 50_000_000])
        limits = replace(self.engine.limits, batch=BatchLimits(objective_ns=objective_ns))
        family = self.versions[self.turns % 2] if self.turns % 5 == 0 else None
        self.engine.reconfigure(limits, some_dial(self.chance, self.turns), family)

    async def client(self) -> None:
        while self.asked < REQUESTS:
            self.asked += 1
            if self.asked % TURN_EVERY == 0:
                self.turn()
            quality = self.chance.choice(CLASSES)
            text = f"{self.chance.choice(LABELS)} w{self.chance.randrange(50)} {self.chance.randrange(TEXTS // 50)}"
            try:
                (answer,) = await self.engine.predict([Text(text)], quality=quality)
            except Overloaded:
                self.refused += 1
                continue
            self.points.add(answer.point)
            if quality == "strict":
                self.strict += 1
                if answer.point != "full" or float(answer.logits.max()) not in FULL_SCORES:
                    self.wrong.append(f"{text}: {answer.point} {answer.variant} {answer.logits.tolist()}")


async def test_strict_is_answered_by_full_quality_in_every_one_of_many_mixed_requests(
    family: Family, tenfold: Family
) -> None:
    async with running(family, workers=2, max_queue_requests=10_000) as (engine, usage):
        mixture = Mixture(engine, (family, tenfold))
        await asyncio.gather(*(mixture.client() for _ in range(CLIENTS)))
    assert mixture.wrong == []
    assert mixture.points == {"full", "lite", "nano"}
    assert mixture.strict > REQUESTS / 4
    assert mixture.turns >= REQUESTS // TURN_EVERY - 1
    check_counts(usage)


def check_counts(usage: RecordingUsage) -> None:
    assert usage.counts["cache_hits"] > 0
    assert {r["point"] for r in usage.requests if r["quality"] == "strict" and r["outcome"] in ("ok", "cached")} == {
        "full"
    }
