"""What the engine's own Python costs a request: `python -m loadtest.engine_bench`. For the engine's developers.

An in-process closed loop around the engine with a runtime that costs nothing, so that CPU time is normalizing,
tokenizing, cache, batching, threads and event loop. The figures move with the machine: compare two versions only by
turns (`PYTHONPATH=OTHER_CHECKOUT python -m loadtest.engine_bench`).
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import uvloop

from loadtest.texts import read_questions
from models.store import Store
from server.engine.engine import Engine, EngineLimits
from server.engine.family import Family, load_family
from server.engine.runtime import Float32Array
from server.engine.tokenizer import Text, Tokens
from server.settings import Settings
from server.shaping.policy import DialState
from server.usage import Usage


class FreeRuntime:
    """Answers after `seconds` of sleep, at no CPU time."""

    def __init__(self, labels: int, seconds: float) -> None:
        self._labels, self._seconds = labels, seconds

    def run(self, batch: Sequence[Tokens]) -> Float32Array:
        """Zeros, shape [len(batch), labels]."""
        time.sleep(self._seconds)
        return np.zeros((len(batch), self._labels), dtype=np.float32)


async def closed_loop(engine: Engine, texts: Iterator[str], clients: int) -> int:
    """Ask every text once, `clients` at a time; returns how many were answered."""
    answered = 0

    async def client() -> None:
        nonlocal answered
        for text in texts:
            answers = await engine.predict([Text(text)], quality="strict")
            answered += len(answers)

    await asyncio.gather(*(client() for _ in range(clients)))
    return answered


def free(family: Family, seconds: float) -> Family:
    """The family with runtimes that cost nothing."""
    labels = len(family.manifest.labels)
    return replace(family, runtimes={name: FreeRuntime(labels, seconds) for name in family.runtimes})


async def measure(options: argparse.Namespace) -> dict[str, float]:
    """CPU microseconds a request: unique texts, then the same ones again from the cache."""
    family = free(load_family(Store(options.store).open(options.family)), options.run_ms / 1e3)
    settings = Settings()
    usage = Usage(model=options.family)
    dial = DialState.initial(family.points, settings.shaping)
    engine = Engine(family, EngineLimits(), dial, usage, options.workers)
    texts = [question.text for question in read_questions(options.texts)][: options.requests]
    result: dict[str, float] = {}
    for name, prefix in (("warm", "warm "), ("unique", ""), ("cached", "")):
        profile = cProfile.Profile() if options.profile == name else None
        before = time.process_time()
        if profile is not None:
            profile.enable()
        answered = await closed_loop(engine, iter([prefix + text for text in texts]), options.clients)
        if profile is not None:
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        result[name] = (time.process_time() - before) / answered * 1e6
    await engine.close()
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--family", default="support-intents")
    parser.add_argument("--texts", type=Path, default=Path("var/bench/questions.csv"))
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run-ms", type=float, default=2.0, help="how long a run of the runtime takes")
    parser.add_argument("--profile", choices=("unique", "cached"))
    print(orjson.dumps(uvloop.run(measure(parser.parse_args()))).decode())


if __name__ == "__main__":
    main()
