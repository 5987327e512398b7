"""Computes jobs in a replica, in what the clients who wait leave over.

A lease that is not urgent is run while nothing waits in the engine and a worker stays free beside it, one lease at a
time and never on the event loop, so that a client who comes meanwhile finds a free worker. An urgent one, whose
deadline is near, is a request like any other. All are answered at full quality.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import orjson
import structlog

from models.manifest import Manifest
from server.api.errors import error_row
from server.engine.engine import Answer, Engine
from server.engine.errors import ClientGone, DeadlineExceeded, EngineError, NotReady, Overloaded
from server.engine.family import Family
from server.engine.scores import best_first, probabilities
from server.engine.tokenizer import Text
from server.jobs.job import Computed, Lease
from server.jobs.port import JobsPort

log = structlog.get_logger(__name__)

TAKE_WAIT_S = 30.0
PAUSE_S = 1.0
LOOK_S = 0.005
PATIENCE_S = 20.0
LOOPS = 2
"""One fetches texts and hands results in while the other computes."""
TRY_AGAIN = (Overloaded, NotReady, DeadlineExceeded, ClientGone)


class Rate(Protocol):
    """What turns CPU time into joules; a replica's `NodeLink`."""

    joules_per_cpu_second: float | None


class JobWorker:
    """Runs leases until cancelled. `ports` are ways to the owner, one for each loop."""

    def __init__(self, ports: Sequence[JobsPort], engine: Engine, rate: Rate) -> None:
        self._ports, self._engine, self._rate = ports, engine, rate
        self._patient = asyncio.Lock()

    async def run(self) -> None:
        """Take, compute and give, until cancelled."""
        await asyncio.gather(*(self._loop(port) for port in self._ports))

    async def _loop(self, port: JobsPort) -> None:
        while True:
            try:
                lease = await port.take(TAKE_WAIT_S)
                if lease is not None:
                    await self._run(port, lease)
            except NotReady:  # the owner is not there yet, or not any more
                await asyncio.sleep(PAUSE_S)
            except Exception:
                log.exception("job_step_failed")
                await asyncio.sleep(PAUSE_S)

    async def _run(self, port: JobsPort, lease: Lease) -> None:
        try:
            if lease.urgent:
                computed, cpu_ns = await self._compute(lease)
            else:
                async with self._patient:
                    await self._room()
                    computed, cpu_ns = await self._compute(lease)
        except TRY_AGAIN:
            await port.give_back(lease.id)
            await asyncio.sleep(PAUSE_S)
            return
        except BaseException:
            await asyncio.shield(port.give_back(lease.id))
            raise
        rate = self._rate.joules_per_cpu_second
        await port.give(lease.id, computed, None if rate is None else cpu_ns / 1e9 * rate)

    async def _room(self) -> None:
        """Wait until there is room beside the clients. Raises Overloaded where there is none for long."""
        waited_s = 0.0
        while not self._engine.has_room:
            if waited_s >= PATIENCE_S:
                raise Overloaded("clients leave no room", PAUSE_S)
            await asyncio.sleep(LOOK_S)
            waited_s += LOOK_S

    async def _compute(self, lease: Lease) -> tuple[list[Computed], int]:
        """Results of a lease and the CPU time they took. Where one text fails, each is asked for alone."""
        texts = [Text(first, second) for _, first, second in lease.texts]
        family = self._engine.family
        try:
            answers = await self._ask(texts, lease)
        except TRY_AGAIN:
            raise
        except EngineError as error:
            if len(texts) == 1:
                return [_failure(lease.texts[0][0], error)], 0
            return await self._one_by_one(lease)
        computed = [
            _success(number, answer, family, raw=lease.raw_scores)
            for (number, _, _), answer in zip(lease.texts, answers, strict=True)
        ]
        return computed, sum(answer.cpu_ns for answer in answers)

    async def _one_by_one(self, lease: Lease) -> tuple[list[Computed], int]:
        computed: list[Computed] = []
        cpu_ns = 0
        for one in lease.texts:
            found, spent_ns = await self._compute(lease._replace(texts=[one]))
            computed += found
            cpu_ns += spent_ns
        return computed, cpu_ns

    async def _ask(self, texts: Sequence[Text], lease: Lease) -> list[Answer]:
        return await self._engine.predict(texts, quality="strict", truncate=lease.truncate, patient=not lease.urgent)


def _success(number: int, answer: Answer, family: Family, *, raw: bool) -> Computed:
    manifest: Manifest = family.manifest
    scores: list[float] = answer.logits.tolist() if raw else probabilities(answer.logits)
    predictions = [{"score": scores[index], "label": manifest.labels[index]} for index in best_first(scores)]
    return Computed(number, orjson.dumps({"predictions": predictions, "version": family.version}), False)


def _failure(number: int, error: EngineError) -> Computed:
    body = {"error": str(error), "error_type": error_row(error).error_type}
    return Computed(number, orjson.dumps(body), True)
