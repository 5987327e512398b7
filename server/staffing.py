"""How many worker threads a replica has: what the settings say, else what was measured on this machine.

Measuring needs the machine for itself for under a second, so it does not hold a start up: a first start takes one
worker for each core, measures as soon as nothing was asked for a moment, and keeps the result in the run folder, where
later starts find it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from energy.procfs import read_cpu_model
from server.engine.cores import usable_cores
from server.engine.engine import Engine
from server.engine.family import Family
from server.engine.worker_profile import (
    LEAST_SHARE,
    WorkerProfile,
    default_workers,
    load_profile,
    machine_of,
    measure_workers,
    save_profile,
    trials,
)
from server.settings import Settings
from server.usage import Usage

log = structlog.get_logger(__name__)

QUIET_S = 2.0
# Each try waits longer than the one before, so that a machine that is never free costs little: the last one is after
# some hours.
WAITS_LONGER = 1.5
MAX_TRIES = 20


class Staffing:
    """Chooses the number of workers of one engine. `quiet_s` is how long nothing may be asked before it measures, and
    `least_share` how much of the CPU time it must get then."""

    def __init__(
        self, settings: Settings, usage: Usage, quiet_s: float = QUIET_S, least_share: float = LEAST_SHARE
    ) -> None:
        self._fixed = settings.batching.workers
        self._folder = settings.server.run_dir
        self._usage = usage
        self._quiet_s = quiet_s
        self._least_share = least_share
        self._cores = usable_cores()
        self._profile: WorkerProfile | None = None
        self._task: asyncio.Task[None] | None = None

    def at_start(self, family: Family) -> int:
        """Workers to start with."""
        if self._fixed is not None:
            return self._fixed
        self._profile = load_profile(self._folder, self._machine(family))
        workers = default_workers(self._cores) if self._profile is None else self._profile.workers
        log.info("workers", workers=workers, cores=round(self._cores, 2), measured=self._profile is not None)
        return workers

    def begin(self, engine: Engine) -> None:
        """Measure later, if there is anything to find out."""
        if self._fixed is None and self._profile is None and len(trials(self._cores)) > 1:
            self._task = asyncio.create_task(self._measure_when_quiet(engine))

    async def stop(self) -> None:
        """Give up what has not been measured."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def describe(self, engine: Engine) -> dict[str, Any]:
        """What `/info` says of it."""
        profile = self._profile
        by = "settings" if self._fixed is not None else "cores" if profile is None else "measured"
        rates = None if profile is None else {str(n): round(rate) for n, rate in profile.texts_per_second.items()}
        return {"count": engine.workers, "chosen_by": by, "cores": self._cores, "texts_per_second": rates}

    async def _measure_when_quiet(self, engine: Engine) -> None:
        for tries in range(MAX_TRIES):
            await asyncio.sleep(self._quiet_s * (WAITS_LONGER**tries - 1))
            seen = self._usage.revision
            await asyncio.sleep(self._quiet_s)
            if engine.active or self._usage.revision != seen:
                continue
            family = engine.family

            def interrupted(seen: int = seen) -> bool:
                return engine.active > 0 or self._usage.revision != seen

            machine = self._machine(family)
            try:
                measured = asyncio.to_thread(
                    measure_workers, family, self._cores, machine, interrupted, self._least_share
                )
                profile = await measured
            except Exception:  # the default serves on
                log.exception("workers_not_measured")
                return
            if profile is not None:
                self._take(engine, profile)
                return

    def _take(self, engine: Engine, profile: WorkerProfile) -> None:
        self._profile = profile
        engine.resize(profile.workers)
        log.info("workers_measured", workers=profile.workers, texts_per_second=profile.texts_per_second)
        try:
            save_profile(self._folder, profile)
        except OSError as error:
            log.warning("workers_not_kept", folder=str(self._folder), why=str(error))

    def _machine(self, family: Family) -> str:
        return machine_of(family, self._cores, read_cpu_model().name)
