"""Settings of the jobs. Every field says below it what it trades and in which unit."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from server.section import MIB, Section


class JobsSettings(Section):
    """Requests that can wait: `/jobs`, run in the cleanest hours before their deadlines."""

    enabled: bool = True
    """Answer `/jobs`. Without jobs it costs a file and a socket."""
    path: Path | None = None
    """SQLite file of the jobs; null uses `<run_dir>/jobs.sqlite`. Texts and results are in it, as they were sent."""
    margin_s: float = Field(default=900, ge=0, le=86_400)
    """Seconds before its deadline by which a job is planned to be done. More survives longer outages of the server
    and leaves fewer clean hours."""
    share_beside_clients: float = Field(default=0.02, gt=0, le=1)
    """Share of the time in which jobs run while clients are there. More gets jobs done sooner and lengthens the
    slowest percent of the clients' replies; near its deadline a job does not make way."""
    max_open_jobs: int = Field(default=10_000, ge=1, le=1_000_000)
    """Jobs that may wait or run; past it the answer is 429. Each costs about a kilobyte of memory."""
    max_texts_per_job: int = Field(default=10_000, ge=1, le=1_000_000)
    """Most texts in one job."""
    max_body_bytes: int = Field(default=16 * MIB, ge=1024, le=64 * MIB)
    """Largest body of a submission, bytes. One at a time is read, which holds the requests of others up for some three
    to seven milliseconds a megabyte."""
    max_stored_bytes: int = Field(default=1024 * MIB, ge=MIB)
    """Past so many bytes in the file, submissions are refused (429) until old jobs are deleted."""
    max_deadline_days: float = Field(default=14, gt=0, le=60)
    """Farthest deadline, days ahead. Forecasts are worth little beyond four, and usual weeks beyond a few."""
    keep_days: float = Field(default=7, gt=0, le=366)
    """Days for which a job that ended, and its results, are kept."""
