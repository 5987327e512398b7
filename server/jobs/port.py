"""What replicas may ask of the process that owns the jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from server.jobs.job import Computed, Lease, Wanted


class JobsPort(Protocol):
    """The owner's desk (`server.jobs.desk`), or a link to it (`server.jobs.link`). Jobs come as what `Job.to_dict`
    says; `owner` is the name of the client's key, "" where no keys are asked for. All raise NotReady while the owner
    cannot be reached."""

    async def submit(self, wanted: Wanted) -> tuple[dict[str, Any], bool]:
        """Keep a job: it, and whether it is new. Raises Overloaded, InvalidInput or InputTooLarge."""

    async def listed(self, owner: str, state: str | None, after: str | None, limit: int) -> list[dict[str, Any]]:
        """The owner's jobs, newest first, from the one behind `after` on."""

    async def show(self, owner: str, job_id: str) -> dict[str, Any]:
        """One job. Raises UnknownJob."""

    async def results(self, owner: str, job_id: str, start: int, limit: int) -> list[bytes]:
        """JSON of the results from text number `start` on; fewer than `limit` where they are large. Raises UnknownJob,
        JobConflict while it is not done."""

    async def cancel(self, owner: str, job_id: str) -> dict[str, Any]:
        """End a job. Raises UnknownJob, JobConflict if it is done."""

    async def now_s(self) -> float:
        """The time that deadlines are meant in, seconds since the epoch by the grid's clock."""

    async def take(self, wait_s: float) -> Lease | None:
        """Texts to compute now; None if there are none for `wait_s` real seconds."""

    async def give(self, lease_id: int, job_id: str, computed: Sequence[Computed], joules: float | None) -> None:
        """What came of a lease, at least one text, and the joules it took where they are known. What is missing is
        leased again; what comes after the lease was lost is kept all the same, where nobody was faster."""

    async def give_back(self, lease_id: int) -> None:
        """A lease that was not computed."""
