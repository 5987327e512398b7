"""`make bench-jobs`: a thousand jobs over a replayed week on a server that is killed five times.

Starts `jouleserve up --edge` on a recording of the grid, played fast, and submits jobs of mixed sizes and deadlines
over five days of it; again and again the process gets SIGKILL and is started anew. Whoever submits repeats a call that
got no answer, with the same idempotency key. At the end every job must be done, once, none late; the table says what
they emitted, what they would have at once, and what perfect foresight would have made of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from energy.grid.replay import Recording, read_recording
from energy.grid.signal import parse_utc
from loadtest.demo_family import FAMILY, compile_demo_family
from loadtest.demo_tables import read_metrics
from loadtest.http import HTTP
from loadtest.served import free_port, interruptible
from loadtest.standing import Figure, at_least, at_most, show
from loadtest.texts import read_questions, texts_file
from models.store import write_atomic

HOUR = timedelta(hours=1)
SUBMITTED_OVER = timedelta(days=5)
DEADLINES_H = (6, 12, 24, 48)
MOST_TEXTS = 24
START_TIMEOUT_S = 60.0

console = Console()


@dataclass(frozen=True)
class Planned:
    """A job that is to be submitted. `at` is a time of the recording."""

    key: str
    at: datetime
    within_h: float
    texts: Sequence[str]


@dataclass
class Server:
    """`jouleserve up --edge` in a folder, which outlives the process. The replay goes on from start to start."""

    folder: Path
    settings: Mapping[str, object]
    start: datetime
    speed: float
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    starts: int = 0
    began: datetime | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def run(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError with the end of its log."""
        self.began = self.began or datetime.now(UTC) + timedelta(seconds=3)
        settings = {
            "server.port": self.port,
            "server.metrics_port": self.metrics_port,
            "server.run_dir": self.folder / "run",
            "grid.provider": "replay",
            "grid.replay_speed": self.speed,
            "grid.replay_start": self.start.isoformat(),
            "grid.replay_began": self.began.isoformat(),
            **self.settings,
        }
        command = [sys.executable, "-m", "server.cli", "up", "--edge"]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        log = self.folder / f"server-{self.starts}.log"
        self.starts += 1
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        ends = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < ends and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if HTTP.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"the server did not come up; see {log}:\n{log.read_text()[-2000:]}")

    def now(self) -> datetime:
        """The recording's time that is played."""
        assert self.began is not None
        return self.start + (datetime.now(UTC) - self.began) * self.speed

    def kill(self) -> None:
        """SIGKILL: nothing of it gets to say a last word."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        """SIGTERM, in good order."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()


def draw_jobs(count: int, start: datetime, texts: Sequence[str], over: timedelta, seed: int = 0) -> list[Planned]:
    """Jobs of mixed sizes and deadlines, submitted at random times, more of them by day; in the order of time."""
    chance = random.Random(seed)
    times: list[datetime] = []
    while len(times) < count:
        at = start + over * chance.random()
        if chance.random() < (1.0 if 7 <= at.hour < 19 else 0.3):
            times.append(at)
    return [
        Planned(
            f"job-{number}",
            at,
            chance.choice(DEADLINES_H),
            [f"{chance.choice(texts)} {number}" for _ in range(chance.randint(1, MOST_TEXTS))],
        )
        for number, at in enumerate(sorted(times))
    ]


class Run:
    """One week."""

    def __init__(self, server: Server, jobs: Sequence[Planned], kills: int) -> None:
        self._server, self._jobs = server, jobs
        span = jobs[-1].at - server.start
        self._kill_at = [server.start + span * (n + 1) / (kills + 0.5) for n in range(kills)]
        self.repeated = 0
        self.ids: dict[str, str] = {}
        self.computed = 0.0

    def run(self) -> None:
        """Submit everything, kill again and again, and wait until nothing is open."""
        self._server.run()
        with httpx.Client(timeout=10) as client:
            for job in self._jobs:
                while (now := self._server.now()) < job.at:
                    self._kill_if_due(now)
                    time.sleep(min(0.05, max(0.0, (job.at - now).total_seconds() / self._server.speed)))
                self._submit(client, job)
            while self._open(client):
                self._kill_if_due(self._server.now())
                time.sleep(0.3)
        self._note_computed()

    def _kill_if_due(self, now: datetime) -> None:
        if self._kill_at and now >= self._kill_at[0]:
            del self._kill_at[0]
            self._note_computed()
            self._server.kill()
            began = time.monotonic()
            self._server.run()
            gone_h = (time.monotonic() - began) * self._server.speed / 3600
            console.print(f"  {now:%a %H:%M} killed; back after {gone_h:.1f} replayed hours", highlight=False)

    def _note_computed(self) -> None:
        with contextlib.suppress(httpx.HTTPError):
            url = f"http://127.0.0.1:{self._server.metrics_port}"
            self.computed = read_metrics(url).total("jouleserve_requests_total")

    def _submit(self, client: httpx.Client, job: Planned) -> None:
        body = {"inputs": [[text] for text in job.texts], "within_s": job.within_h * 3600, "truncate": True}
        for attempt in range(50):
            self._kill_if_due(self._server.now())
            with contextlib.suppress(httpx.HTTPError):
                reply = client.post(f"{self._server.url}/jobs", json=body, headers={"Idempotency-Key": job.key})
                if reply.status_code in (200, 201):
                    self.ids[job.key] = reply.json()["id"]
                    if attempt == 0 and random.random() < 0.05:  # a client that lost the reply asks again
                        self.repeated += 1
                        again = client.post(f"{self._server.url}/jobs", json=body, headers={"Idempotency-Key": job.key})
                        assert again.json()["id"] == self.ids[job.key]
                    return
                assert reply.status_code in (429, 503), reply.text
            time.sleep(0.1)
        raise RuntimeError(f"{job.key} could not be submitted")

    def _open(self, client: httpx.Client) -> bool:
        for state in ("waiting", "running"):
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{self._server.url}/jobs?state={state}&limit=1").json()["jobs"]:
                    return True
        return False


def audit(path: Path) -> dict[str, Any]:
    """What the jobs' file says, read by other code than the server's, after the server has ended."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        jobs = [dict(row) for row in db.execute("SELECT * FROM jobs")]
        results = dict(db.execute("SELECT job, count(result) FROM texts GROUP BY job"))
        totals = dict(db.execute("SELECT name, value FROM totals"))
    return {"jobs": jobs, "results": results, "totals": totals}


def clean_share(jobs: Sequence[Mapping[str, Any]], recording: Recording) -> dict[str, float]:
    """Grams per joule relative to running at once, each job weighed by its joules: as run and by perfect foresight."""
    sums = {"at_once": 0.0, "as_run": 0.0, "foresight": 0.0}
    for job in jobs:
        submitted, deadline, finished = (
            datetime.fromtimestamp(job[name], UTC) for name in ("submitted_s", "deadline_s", "finished_s")
        )
        sums["at_once"] += job["joules"] * recording.at(submitted)[1]
        sums["as_run"] += job["joules"] * recording.at(finished)[1]
        best, at = recording.at(submitted)[1], submitted
        while at < deadline:
            best = min(best, recording.at(at)[1])
            at += HOUR
        sums["foresight"] += job["joules"] * best
    return {name: value / 3.6e6 for name, value in sums.items()}


def figures_of(run: Run, planned: Sequence[Planned], found: Mapping[str, Any], kills: int) -> list[Figure]:
    """What is asked of it."""
    jobs, totals = found["jobs"], found["totals"]
    texts = sum(len(job.texts) for job in planned)
    late = [job for job in jobs if job["state"] == "done" and job["finished_s"] > job["deadline_s"]]
    whole = [job for job in jobs if found["results"].get(job["id"]) == job["texts"] == job["done"]]
    return [
        at_least("jobs", "killed and restarted", kills, kills),
        at_least("jobs", "done", sum(job["state"] == "done" for job in jobs), len(planned)),
        at_most("jobs", "in the file (submissions were repeated, too)", len(jobs), len(planned)),
        at_least("jobs", "with a result for every text", len(whole), len(planned)),
        at_most("jobs", "completions counted", totals.get("done", 0), len(planned)),
        at_most("jobs", "results kept", totals.get("texts", 0), texts),
        at_most("jobs", "late", len(late), 0),
    ]


def report(run: Run, planned: Sequence[Planned], found: Mapping[str, Any], recording: Recording) -> dict[str, Any]:
    """The figures, for the table and the file."""
    jobs, totals = found["jobs"], found["totals"]
    ideal = clean_share(jobs, recording)
    slack_h = [(job["deadline_s"] - job["finished_s"]) / 3600 for job in jobs if job["finished_s"]]
    kept = int(totals.get("texts", 0))
    metered = int(totals.get("metered_texts", 0))
    return {
        "jobs": len(jobs),
        "texts": kept,
        "texts_metered": metered,
        "texts_computed_at_least": int(run.computed),
        "submissions_repeated": run.repeated,
        "joules": totals.get("joules", 0.0),
        "grams_at_once": totals.get("grams_at_once", 0.0),
        "grams_as_run": totals.get("grams", 0.0),
        "saved": 1 - totals.get("grams", 0.0) / max(totals.get("grams_at_once", 0.0), 1e-30),
        "saved_by_recording": 1 - ideal["as_run"] / ideal["at_once"],
        "saved_by_foresight": 1 - ideal["foresight"] / ideal["at_once"],
        "least_slack_hours": min(slack_h, default=0.0),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grid", type=Path, help="CSV (or .csv.gz) of UTC times and gCO2e/kWh, with 28 days before")
    parser.add_argument("--start", default="2021-07-05T00:00:00Z", help="where the week begins in it")
    parser.add_argument(
        "--forecast", type=Path, help="CSV of forecasts as they were issued (grid.replay_forecast_path)"
    )
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=25.0, help="real time of the week")
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--family", default=FAMILY)
    parser.add_argument(
        "--texts", type=texts_file, help=".csv, .parquet or .txt with distinct texts (default: the demo's)"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    start = parse_utc(options.start)
    speed = timedelta(days=7).total_seconds() / (60 * options.minutes)
    with tempfile.TemporaryDirectory(prefix="jobs-") as name:
        folder = Path(name)
        if options.texts is None:
            options.texts = folder / "questions.csv"
            compile_demo_family(options.store, options.texts)
        planned = draw_jobs(options.jobs, start + HOUR, [q.text for q in read_questions(options.texts)], SUBMITTED_OVER)
        settings: dict[str, object] = {
            "model.store": options.store.resolve(),
            "model.family": options.family,
            "cache.enabled": "false",
            "energy.source": "estimated",
            "grid.replay_path": options.grid.resolve(),
            "shaping.policy": "off",
            "shaping.poll_period_s": max(0.1, 600 / speed),
            # A restart takes seconds, which at this speed are hours.
            "jobs.margin_s": round(min(10_800.0, 30 * speed)),
        }
        if options.forecast is not None:
            settings["grid.replay_forecast_path"] = options.forecast.resolve()
        server = Server(folder, settings, start, speed)
        run = Run(server, planned, options.kills)
        console.print(f"{options.jobs} jobs, a week in {options.minutes:g} minutes ({speed:.0f}x)", highlight=False)
        try:
            with interruptible():
                run.run()
        finally:
            server.stop()
        found = audit(folder / "run" / "jobs.sqlite")
        figures = figures_of(run, planned, found, server.starts - 1)
        described = report(run, planned, found, read_recording(options.grid))
    met = show(console, figures)
    for key, value in described.items():
        console.print(f"  {key:<24} {value:.4g}" if isinstance(value, float) else f"  {key:<24} {value}")
    if options.out is not None:
        kept = {"grid": options.grid.name.split(".")[0], "start": options.start, "speed": speed, "kills": options.kills}
        wanted = [{"figure": one.name, "measured": one.value, "wanted": one.limit, "met": one.met} for one in figures]
        write_atomic(options.out, json.dumps({**kept, **described, "wanted": wanted}, indent=1).encode() + b"\n")
        console.print(f"figures: {options.out}")
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
