"""Computes jobs in a replica, in what the clients who wait leave over.

A lease that is not urgent is run while nobody waits for the engine and a worker stays free beside it, one at a time and
never on the event loop. While clients come and go it is run text by text with rests in between, for a small share of
the time: whole leases, on cores that others used as well, made the median and the slowest percent 3.7 times what they
were alone, and single texts for a tenth of the time still made the slowest percent twice as long. An urgent lease,
whose deadline is near, is a request like any other. All are answered at full quality.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import orjson
import structlog

from models.manifest import Manifest
from server.api.errors import error_row
from server.engine.engine import Answer, Engine
from server.engine.errors import BackendFailure, ClientGone, DeadlineExceeded, EngineError, NotReady, Overloaded
from server.engine.family import Family
from server.engine.scores import best_first, shown_scores
from server.engine.tokenizer import Text
from server.jobs.job import Computed, Lease
from server.jobs.port import JobsPort

log = structlog.get_logger(__name__)

TAKE_WAIT_S = 30.0
PAUSE_S = 1.0
LOOK_S = 0.005
PATIENCE_S = 20.0
GIVE_AFTER_S = 2.0
"""Beside clients a lease lasts this long: what is not computed by then goes back, so that a job that is cancelled, or
whose deadline has come near, does not wait for texts that rest."""
QUIET_S = 2.0
"""Without a client for so long, nobody is thought to be there."""
LOOPS = 2
"""One fetches texts and hands results in while the other computes."""
TRY_AGAIN = (Overloaded, NotReady, DeadlineExceeded, ClientGone)


class Rate(Protocol):
    """What turns CPU time into joules; a replica's `NodeLink`."""

    joules_per_cpu_second: float | None


class JobWorker:
    """Runs leases until cancelled. `ports` are ways to the owner, one for each loop."""

    def __init__(self, ports: Sequence[JobsPort], engine: Engine, rate: Rate, share: float = 0.02) -> None:
        """`share` is that of the time in which jobs run while clients are there."""
        self._ports, self._engine, self._rate = ports, engine, rate
        self._rest = 1 / share - 1
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
        computed: list[Computed] = []
        cpu_ns = 0
        held_up = False
        ends_s = time.monotonic() + GIVE_AFTER_S
        try:
            for piece in self._pieces(lease):
                found, spent_ns = await self._piece(piece)
                computed += found
                cpu_ns += spent_ns
                if not lease.urgent and time.monotonic() >= ends_s:
                    break
        except TRY_AGAIN:
            held_up = True
        except BaseException:
            await asyncio.shield(port.give_back(lease.id))
            raise
        rate = self._rate.joules_per_cpu_second
        if computed:  # what is missing is leased again
            await port.give(lease.id, lease.job, computed, None if rate is None else cpu_ns / 1e9 * rate)
        else:
            await port.give_back(lease.id)
        if held_up:
            await asyncio.sleep(PAUSE_S)

    def _pieces(self, lease: Lease) -> Iterator[Lease]:
        """The lease, in single texts as long as clients are there."""
        texts = list(lease.texts)
        while texts:
            count = 1 if not lease.urgent and self._engine.quiet_s < QUIET_S else len(texts)
            yield lease._replace(texts=texts[:count])
            del texts[:count]

    async def _piece(self, piece: Lease) -> tuple[list[Computed], int]:
        if piece.urgent:
            return await self._compute(piece)
        async with self._patient:
            await self._room()
            began = time.monotonic()
            found = await self._compute(piece)
            if self._engine.quiet_s < QUIET_S:
                await asyncio.sleep(self._rest * (time.monotonic() - began))
            return found

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
            computed = [
                _success(number, answer, family, raw=lease.raw_scores)
                for (number, _, _), answer in zip(lease.texts, answers, strict=True)
            ]
        except TRY_AGAIN:
            raise
        except Exception as error:  # of a kind that nobody thought of, too: it would be leased for ever
            if len(texts) > 1:
                return await self._one_by_one(lease)
            return [_failure(lease.texts[0][0], _told(error, lease.job))], 0
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
    scores = shown_scores(answer.logits, manifest, raw=raw)
    predictions = [{"score": scores[index], "label": manifest.labels[index]} for index in best_first(scores)]
    return Computed(number, orjson.dumps({"predictions": predictions, "version": family.version}), False)


def _told(error: Exception, job_id: str) -> EngineError:
    """What a client is told of an error."""
    if isinstance(error, EngineError):
        return error
    log.error("job_text_failed", job=job_id, exc_info=error)
    return BackendFailure("the text could not be computed; the server's log says why")


def _failure(number: int, error: EngineError) -> Computed:
    body = {"error": str(error), "error_type": error_row(error).error_type}
    return Computed(number, orjson.dumps(body), True)
