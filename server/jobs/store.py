"""The SQLite file of the jobs. Used from one thread, by one process: it is locked for as long as it is open.

Every change is one transaction that is on the disk when the call returns, so that neither a kill nor a power cut takes
back what was answered.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from server.engine.errors import InvalidInput
from server.engine.tokenizer import Text
from server.jobs.errors import JobConflict, JobStoreError, UnknownJob
from server.jobs.job import Computed, Job, Wanted, units_of

VERSION = 1
_SCHEMA = """
CREATE TABLE jobs (
    sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, submitted_s REAL NOT NULL,
    deadline_s REAL NOT NULL, texts INTEGER NOT NULL, units INTEGER NOT NULL, state TEXT NOT NULL,
    done INTEGER NOT NULL, done_units INTEGER NOT NULL, failed INTEGER NOT NULL, truncate TEXT,
    raw_scores INTEGER NOT NULL, started_s REAL, finished_s REAL, submit_grams_per_kwh REAL,
    metered_texts INTEGER NOT NULL, joules REAL NOT NULL, grams REAL NOT NULL, grams_at_once REAL NOT NULL,
    idempotency_key TEXT, digest BLOB NOT NULL, UNIQUE (owner, idempotency_key));
CREATE TABLE texts (
    job TEXT NOT NULL, number INTEGER NOT NULL, first TEXT NOT NULL, second TEXT, result BLOB,
    PRIMARY KEY (job, number)) WITHOUT ROWID;
CREATE TABLE totals (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX open_jobs ON jobs (state, deadline_s);
"""
_COLUMNS = (
    "id, owner, submitted_s, deadline_s, texts, units, state, done, done_units, failed, truncate, raw_scores,"
    " started_s, finished_s, submit_grams_per_kwh, metered_texts, joules, grams, grams_at_once"
)
TOTALS = ("done", "cancelled", "late", "texts", "metered_texts", "joules", "grams", "grams_at_once")
"""Sums over all jobs that ever ended, or over their computed texts; kept when the jobs are deleted."""


class Metered(NamedTuple):
    """What computing some texts took, and emitted then."""

    joules: float
    grams_per_kwh: float


class JobStore:
    """The file."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it. Raises JobStoreError if another process has it or it is not ours."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # texts are nobody else's business
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
            self._open()
        except (OSError, sqlite3.Error) as error:
            raise JobStoreError(_remedy(path, error)) from None

    def _open(self) -> None:
        db = self._db
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"it is of version {version}, and this release reads {VERSION}")
        db.execute("BEGIN IMMEDIATE")  # takes the lock, for good
        if version == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")

    def close(self) -> None:
        """Close it."""
        self._db.close()

    def add(self, wanted: Wanted, now_s: float, grams_per_kwh: float | None) -> tuple[Job, bool]:
        """Keep a new job; returns it and True, or the job that the same idempotency key made before and False.

        Raises InvalidInput if that one was asked for differently.
        """
        with self._transaction() as db:
            if (before := self.made_before(wanted)) is not None:
                return before, False
            job = Job(
                id=secrets.token_hex(12),
                owner=wanted.owner,
                submitted_s=now_s,
                deadline_s=wanted.deadline_s,
                texts=len(wanted.texts),
                units=sum(map(units_of, wanted.texts)),
                state="open",
                truncate=wanted.truncate,
                raw_scores=wanted.raw_scores,
                submit_grams_per_kwh=grams_per_kwh,
            )
            values = [getattr(job, name) for name in _COLUMNS.split(", ")]
            marks = ", ".join("?" * (len(values) + 2))
            db.execute(
                f"INSERT INTO jobs ({_COLUMNS}, idempotency_key, digest) VALUES ({marks})",
                (*values, wanted.idempotency_key, wanted.digest),
            )
            db.executemany(
                "INSERT INTO texts VALUES (?, ?, ?, ?, NULL)",
                ((job.id, number, text.first, text.second) for number, text in enumerate(wanted.texts)),
            )
        return job, True

    def made_before(self, wanted: Wanted) -> Job | None:
        """The job that the same idempotency key made. Raises InvalidInput if that one was asked for differently."""
        if wanted.idempotency_key is None:
            return None
        query = "SELECT id, digest FROM jobs WHERE owner = ? AND idempotency_key = ?"
        row = self._db.execute(query, (wanted.owner, wanted.idempotency_key)).fetchone()
        if row is None:
            return None
        if row[1] != wanted.digest:
            raise InvalidInput("Idempotency-Key: was used for another job before; send a new key with a new job")
        return self.get(row[0])

    def get(self, job_id: str) -> Job:
        """The job of that id. Raises UnknownJob."""
        row = self._db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise UnknownJob(f"job: there is no '{job_id[:40]}'; list yours with GET /jobs")
        return _job(row)

    def open_jobs(self) -> list[Job]:
        """All jobs that are neither done nor cancelled, nearest deadline first."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE state = 'open' ORDER BY deadline_s, sequence")
        return [_job(row) for row in rows]

    def listed(
        self, owner: str, state: str | None, after: str | None, limit: int, running: Collection[str]
    ) -> list[Job]:
        """Jobs of an owner, newest first, those that come after job `after` in that order. Which of the open ones are
        `running` the file does not know."""
        conditions, values = ["owner = ?"], list[Any]([owner])
        if after is not None:
            conditions.append("sequence < (SELECT sequence FROM jobs WHERE id = ?)")
            values.append(after)
        if state is not None:
            conditions.append("state = ?")
            values.append("open" if state in ("waiting", "running") else state)
        if state in ("waiting", "running"):
            marks = ", ".join("?" * len(running))
            conditions.append(f"id {'IN' if state == 'running' else 'NOT IN'} ({marks})")
            values.extend(running)
        where = " AND ".join(conditions)
        query = f"SELECT {_COLUMNS} FROM jobs WHERE {where} ORDER BY sequence DESC LIMIT ?"
        return [_job(row) for row in self._db.execute(query, (*values, limit))]

    def uncomputed(self, job_id: str) -> list[int]:
        """Numbers of the texts that have no result yet."""
        rows = self._db.execute("SELECT number FROM texts WHERE job = ? AND result IS NULL ORDER BY number", (job_id,))
        return [row[0] for row in rows]

    def texts(self, job_id: str, numbers: Sequence[int]) -> list[tuple[int, str, str | None]]:
        """Number, first and second of these texts."""
        marks = ", ".join("?" * len(numbers))
        query = f"SELECT number, first, second FROM texts WHERE job = ? AND number IN ({marks}) ORDER BY number"
        return list(self._db.execute(query, (job_id, *numbers)))

    def results(self, job_id: str, start: int, limit: int, most_bytes: int) -> list[bytes]:
        """Results of the texts from `start` on: at most so many, and so many bytes beside the first."""
        query = "SELECT result FROM texts WHERE job = ? AND number >= ? ORDER BY number LIMIT ?"
        found: list[bytes] = []
        size = 0
        for (body,) in self._db.execute(query, (job_id, start, limit)):
            size += len(body)
            if found and size > most_bytes:
                break
            found.append(body)
        return found

    def keep(self, job_id: str, computed: Sequence[Computed], metered: Metered | None, now_s: float) -> Job:
        """Keep results; the last one makes the job done. A text that has a result, and a job that was cancelled
        meanwhile, stay as they are. Raises UnknownJob."""
        with self._transaction() as db:
            job = self.get(job_id)
            if job.state != "open":
                return job
            new = [
                one
                for one in computed
                if db.execute(
                    "UPDATE texts SET result = ? WHERE job = ? AND number = ? AND result IS NULL",
                    (one.body, job_id, one.number),
                ).rowcount
            ]
            if not new:
                return job
            joules = grams = at_once = 0.0
            counted = 0
            if metered is not None and job.submit_grams_per_kwh is not None:
                # What was computed twice, because a process died in between, is owed once.
                joules = metered.joules * len(new) / len(computed)
                grams, at_once = (joules * g / 3.6e6 for g in (metered.grams_per_kwh, job.submit_grams_per_kwh))
                counted = len(new)
            done = job.done + len(new)
            ended = done == job.texts
            units = sum(self._units(job_id, one.number) for one in new)
            db.execute(
                "UPDATE jobs SET done = ?, done_units = done_units + ?, failed = failed + ?, state = ?, finished_s = ?,"
                " started_s = coalesce(started_s, ?), metered_texts = metered_texts + ?, joules = joules + ?,"
                " grams = grams + ?, grams_at_once = grams_at_once + ? WHERE id = ?",
                (
                    done, units, sum(one.failed for one in new), "done" if ended else "open", now_s if ended else None,
                    now_s, counted, joules, grams, at_once, job_id,
                ),
            )  # fmt: skip
            sums = {"texts": len(new), "metered_texts": counted}
            self._count({**sums, "joules": joules, "grams": grams, "grams_at_once": at_once})
            if ended:
                self._count({"done": 1, "late": now_s > job.deadline_s})
            return self.get(job_id)

    def _units(self, job_id: str, number: int) -> int:
        query = "SELECT first, second FROM texts WHERE job = ? AND number = ?"
        first, second = self._db.execute(query, (job_id, number)).fetchone()
        return units_of(Text(first, second))

    def cancel(self, job_id: str, now_s: float) -> Job:
        """End an open job; what was computed stays. Raises UnknownJob, or JobConflict if it is done."""
        with self._transaction() as db:
            job = self.get(job_id)
            if job.state == "done":
                raise JobConflict("job: is done already, and cannot be cancelled; fetch its results")
            if job.state == "open":
                db.execute("UPDATE jobs SET state = 'cancelled', finished_s = ? WHERE id = ?", (now_s, job_id))
                self._count({"cancelled": 1})
            return self.get(job_id)

    def forget(self, ended_before_s: float, limit: int = 100) -> int:
        """Delete jobs that ended before then, at most `limit` at once; returns how many."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT id FROM jobs WHERE state != 'open' AND finished_s < ? LIMIT ?", (ended_before_s, limit)
            ).fetchall()
            db.executemany("DELETE FROM texts WHERE job = ?", rows)
            db.executemany("DELETE FROM jobs WHERE id = ?", rows)
        if rows:
            self._db.execute("PRAGMA incremental_vacuum").fetchall()
        return len(rows)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file that are in use."""
        pages, free, size = (
            int(self._db.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def totals(self) -> dict[str, float]:
        """The sums of `TOTALS`."""
        found = dict(self._db.execute("SELECT name, value FROM totals"))
        return {name: found.get(name, 0.0) for name in TOTALS}

    def remembered(self, name: str) -> float | None:
        """A figure that `remember` kept."""
        row = self._db.execute("SELECT value FROM totals WHERE name = ?", (name,)).fetchone()
        return None if row is None else float(row[0])

    def remember(self, name: str, value: float) -> None:
        """Keep a figure over restarts."""
        self._db.execute(
            "INSERT INTO totals VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (name, value)
        )

    def _count(self, amounts: dict[str, float]) -> None:
        self._db.executemany(
            "INSERT INTO totals VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
            [(name, float(amount)) for name, amount in amounts.items() if amount],
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # the first error tells more
                self._db.execute("ROLLBACK")
            raise


def _job(row: Sequence[Any]) -> Job:
    fields = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return Job(**{**fields, "raw_scores": bool(fields["raw_scores"])})


def _remedy(path: Path, error: Exception) -> str:
    if "locked" in str(error):
        return f"jobs.path: {path} is used by another server; stop it, or give another file"
    return f"jobs.path: {path} cannot be used ({error}); give a file of this release, or move it away to begin anew"
