"""A grid whose clock tests turn, and a desk under it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from energy.grid.signal import Intensity
from server.engine.tokenizer import Text
from server.job_settings import JobsSettings
from server.jobs.desk import JobDesk
from server.jobs.job import Computed, Lease, Wanted

START = datetime(2025, 1, 6, tzinfo=UTC)
HOUR_S = 3600.0


@dataclass
class TurnedGrid:
    """An `Outlook`: hours from `START` on with the given intensities, all of them foretold."""

    grams: Sequence[float]
    time: datetime = START

    def now(self) -> datetime:
        return self.time

    def latest(self) -> Intensity | None:
        return self._at(self.time.replace(minute=0, second=0))

    def history(self) -> Sequence[Intensity]:
        return ()

    def forecast(self) -> Sequence[Intensity]:
        points = (self._at(START + timedelta(hours=hour)) for hour in range(len(self.grams)))
        return [point for point in points if point is not None]

    def _at(self, time: datetime) -> Intensity | None:
        hour = int((time - START).total_seconds() // HOUR_S)
        known = 0 <= hour < len(self.grams)
        return Intensity("X", "test", time, self.grams[hour], "live", issued=START) if known else None

    def wait(self, hours: float) -> None:
        """Turn the clock on."""
        self.time += timedelta(hours=hours)


def wanted(texts: int | Sequence[str], within_hours: float, grid: TurnedGrid, **more: Any) -> Wanted:
    """A job of so many texts, or of these."""
    found = [f"card w{n}" for n in range(texts)] if isinstance(texts, int) else texts
    deadline_s = grid.now().timestamp() + within_hours * HOUR_S
    return Wanted(more.pop("owner", ""), [Text(text) for text in found], deadline_s, **more)


@asynccontextmanager
async def desk_of(
    folder: Path, grid: TurnedGrid, *, runs: bool = True, clock: Callable[[], float] = time.monotonic, **limits: Any
) -> AsyncIterator[JobDesk]:
    """A desk over a file in the folder, with its loop; closed in good order at the end."""
    limits = {"margin_s": 0, **limits}
    desk = JobDesk(folder / "jobs.sqlite", JobsSettings(**limits), grid, folder / "jobs.json", clock=clock)
    task = asyncio.create_task(desk.run()) if runs else None
    try:
        yield desk
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await desk.close()


def computed(lease: Lease) -> list[Computed]:
    """A result for each text of a lease."""
    return [Computed(number, b'{"text":"%s"}' % first.encode(), False) for number, first, _ in lease.texts]


async def work_off(
    desk: JobDesk, joules: float | None = 1.0, most: int = 10_000, wait_s: float = 1.0,
    seen: Callable[[Lease], None] = lambda lease: None,
) -> int:  # fmt: skip
    """Compute leases until no job is open or there are none for a moment; returns how many texts that were."""
    count = 0
    while count < most and desk._schedule.jobs and (lease := await desk.take(wait_s)) is not None:
        seen(lease)
        count += len(lease.texts)
        await desk.give(lease.id, lease.job, computed(lease), joules)
    return count
