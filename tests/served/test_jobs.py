"""Jobs on a real server that is killed while they wait and run: each is done once, with a result for every text."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from energy.grid.replay import read_recording
from loadtest.jobs_bench import Run, Server, audit, clean_share, draw_jobs
from loadtest.served import serve
from models.store import Store
from tests.support.tiny_family import publish_tiny_family

pytestmark = pytest.mark.served

START = datetime(2025, 2, 3, tzinfo=UTC)
HOURS = 6 * 7 * 24
JOBS, KILLS, SPEED = 40, 2, 1800.0


def grid(folder: Path) -> Path:
    """Six weeks in which every fourth hour is clean."""
    path = folder / "grid.csv"
    first = START - timedelta(weeks=4)
    rows = (f"{first + timedelta(hours=n):%Y-%m-%dT%H:%M:%SZ},{100 if n % 4 == 3 else 400}\n" for n in range(HOURS))
    path.write_text("utc_time,grams_per_kwh\n" + "".join(rows))
    return path


def test_every_job_is_done_once_however_often_the_server_is_killed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    publish_tiny_family(store)
    recording = grid(tmp_path)
    settings = {
        "model.store": store.root,
        "model.family": "tiny",
        "cache.enabled": "false",
        "energy.source": "estimated",
        "grid.replay_path": recording,
        "shaping.policy": "off",
        "shaping.poll_period_s": 0.3,
        "jobs.margin_s": 7200,
    }
    planned = draw_jobs(JOBS, START, ["my card", "where is my parcel"], timedelta(hours=8))
    run = Run(server := Server(tmp_path, settings, START, SPEED), planned, KILLS)
    try:
        run.run()
    finally:
        server.stop()
    found = audit(tmp_path / "run" / "jobs.sqlite")
    assert server.starts == KILLS + 1
    assert sorted(run.ids.values()) == sorted(job["id"] for job in found["jobs"])
    assert {job["state"] for job in found["jobs"]} == {"done"}
    texts = {run.ids[job.key]: len(job.texts) for job in planned}
    assert found["results"] == texts
    assert (found["totals"]["done"], found["totals"]["texts"]) == (JOBS, sum(texts.values()))
    emitted = clean_share(found["jobs"], read_recording(recording))
    assert emitted["foresight"] <= emitted["as_run"] < emitted["at_once"]


def test_the_command_line_hands_a_job_in_shows_it_and_says_what_it_cannot_do(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    publish_tiny_family(store)
    texts = tmp_path / "texts.txt"
    texts.write_text("my card\nwhere is my parcel\n")
    place = {"model.store": store.root, "model.family": "tiny", "shaping.policy": "off"}
    with serve(tmp_path, place, edge=True) as served:

        def jobs(*arguments: str, code: int = 0) -> str:
            command = [sys.executable, "-m", "server.cli", "jobs", *arguments, "--url", served.url]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == code, done.stderr
            return done.stderr if code else done.stdout

        def handed_in(*options: str) -> str:
            found = re.search(r"[0-9a-f]{16,}", jobs("submit", str(texts), *options))
            assert found is not None
            return found[0]

        soon = handed_in("--within", "5m", "--idempotency-key", "once")
        assert handed_in("--within", "5m", "--idempotency-key", "once") == soon
        deadline = time.monotonic() + 60
        while "done" not in (shown := jobs("show", soon)):
            assert time.monotonic() < deadline, shown
            time.sleep(0.5)
        jobs("show", soon, "--results", str(tmp_path / "results.ndjson"))
        assert "parcel" in (tmp_path / "results.ndjson").read_text()
        listed = jobs("list")
        assert soon[:8] in listed
        assert "cannot be cancelled; fetch its results" in jobs("cancel", soon, code=2)
