"""The owner of the jobs: they wait for their hour, are done once, survive restarts, and keep to their bounds."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from energy.grid.windows import plan
from server.engine.errors import InputTooLarge, InvalidInput, NotReady, Overloaded
from server.engine.tokenizer import Text
from server.job_settings import JobsSettings
from server.jobs.desk import HOLD_S, LEASE_TIMEOUT_S, LEASE_UNITS, JobDesk
from server.jobs.errors import JobConflict, JobStoreError, UnknownJob
from server.jobs.job import Lease, Wanted, units_of
from server.jobs.schedule import FIRST_PACE_S, Planned, Schedule
from server.jobs.store import JobStore
from tests.support.engines import until
from tests.support.jobs import HOUR_S, START, TurnedGrid, computed, desk_of, wanted, work_off

CLEAN_AT_3 = [400.0, 300.0, 300.0, 100.0, 300.0, 300.0, 300.0, 300.0]


async def idle(desk: JobDesk) -> bool:
    """Whether there is nothing to compute now."""
    await asyncio.sleep(0.3)
    return await desk.take(0.05) is None


async def leased(desk: JobDesk) -> Lease:
    """The next texts to compute, of which there are some."""
    lease = await desk.take(5)
    assert lease is not None
    return lease


async def test_a_job_waits_for_the_cleanest_hour_before_its_deadline_and_tells_when_that_is(tmp_path: Path) -> None:
    grid = TurnedGrid(CLEAN_AT_3)
    async with desk_of(tmp_path, grid) as desk:
        job, new = await desk.submit(wanted(5, 6, grid))
        assert new
        assert await idle(desk)
        shown = await desk.show("", job["id"])
        assert (shown["state"], shown["planned"]) == ("waiting", "2025-01-06T03:00:00Z")
        grid.wait(3)
        await desk.submit(wanted(1, 1, grid))  # something happens, so that the desk looks at the clock
        assert await work_off(desk) == 6
        done = await desk.show("", job["id"])
        assert (done["state"], done["late"], done["texts_done"]) == ("done", False, 5)
        assert done["grams_at_once"] == pytest.approx(4 * done["grams"])
        assert done["joules"] == 1.0
        results = await desk.results("", job["id"], 0, 100)
        assert [json.loads(row)["text"] for row in results] == [f"card w{n}" for n in range(5)]


async def test_a_job_whose_deadline_is_near_runs_however_dirty_the_hour_and_makes_way_for_nobody(
    tmp_path: Path,
) -> None:
    grid = TurnedGrid(CLEAN_AT_3)
    leases: list[Lease] = []
    async with desk_of(tmp_path, grid, margin_s=900) as desk:
        job, _ = await desk.submit(wanted(3, 0.2, grid))
        assert await work_off(desk, seen=leases.append) == 3
        assert (await desk.show("", job["id"]))["state"] == "done"
    assert leases[0].urgent


async def test_a_job_that_nothing_is_known_of_runs_at_once(tmp_path: Path) -> None:
    grid = TurnedGrid([])
    async with desk_of(tmp_path, grid) as desk:
        job, _ = await desk.submit(wanted(3, 48, grid))
        assert await work_off(desk) == 3
        done = await desk.show("", job["id"])
    assert (done["state"], done["grams"], done["texts_metered"]) == ("done", None, 0)


async def test_joules_that_nobody_measured_are_absent(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0])
    async with desk_of(tmp_path, grid) as desk:
        job, _ = await desk.submit(wanted(3, 1, grid))
        await work_off(desk, joules=None)
        done = await desk.show("", job["id"])
    assert (done["joules"], done["grams"], done["grams_at_once"]) == (None, None, None)


async def test_leases_are_short_and_a_job_is_computed_by_several_at_once(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 8)
    async with desk_of(tmp_path, grid) as desk:
        await desk.submit(wanted(["x" * 700] * 9, 6, grid))
        first, second = await desk.take(5), await desk.take(5)
        assert first is not None
        assert second is not None
        assert not {number for number, _, _ in first.texts} & {number for number, _, _ in second.texts}
        for lease in (first, second):
            assert sum(units_of(Text(text)) for _, text, _ in lease.texts) <= LEASE_UNITS


async def test_a_lease_that_is_given_back_is_leased_again_and_one_given_twice_counts_once(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 8)
    async with desk_of(tmp_path, grid) as desk:
        job, _ = await desk.submit(wanted(4, 6, grid))
        lease = await leased(desk)
        await desk.give_back(lease.id)
        again = await leased(desk)
        assert again.texts == lease.texts
        await desk.give(again.id, again.job, computed(again), 1.0)
        await desk.give(again.id, again.job, computed(again), 1.0)
        done = await desk.show("", job["id"])
        assert (done["texts_done"], done["joules"]) == (4, 1.0)


async def test_a_restart_goes_on_with_the_texts_that_have_no_result(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 8)
    async with desk_of(tmp_path, grid) as desk:
        job, _ = await desk.submit(wanted(40, 6, grid))
        before = await work_off(desk, most=16)
        await desk.take(1)  # and nobody gives it
    seen: list[int] = []
    async with desk_of(tmp_path, grid) as desk:
        shown = await desk.show("", job["id"])
        assert (shown["state"], shown["texts_done"]) == ("waiting", before)
        await work_off(desk, seen=lambda lease: seen.extend(number for number, _, _ in lease.texts))
        done = await desk.show("", job["id"])
        assert (done["state"], done["texts_done"], len(await desk.results("", job["id"], 0, 100))) == ("done", 40, 40)
    assert sorted(seen) == list(range(before, 40))


def test_what_was_answered_outlives_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from server.jobs.store import JobStore;"
        "from server.jobs.job import Wanted; from server.engine.tokenizer import Text;"
        "store = JobStore(Path(sys.argv[1])); job, _ = store.add(Wanted('', [Text('a')], 9e9), 1.0, None);"
        "print(job.id, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "jobs.sqlite"
    killed = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert killed.returncode < 0, killed.stderr
    store = JobStore(path)
    assert store.get(killed.stdout.strip()).texts == 1
    store.close()


async def test_the_same_idempotency_key_gives_the_same_job_also_after_a_restart(tmp_path: Path) -> None:
    grid = TurnedGrid(CLEAN_AT_3)
    asked = wanted(2, 6, grid, idempotency_key="k", digest=b"1")
    async with desk_of(tmp_path, grid) as desk:
        first, new = await desk.submit(asked)
        assert new
    async with desk_of(tmp_path, grid) as desk:
        second, again = await desk.submit(asked)
        assert (second["id"], again) == (first["id"], False)
        with pytest.raises(InvalidInput, match="Idempotency-Key"):
            await desk.submit(wanted(3, 6, grid, idempotency_key="k", digest=b"2"))
        other, new = await desk.submit(wanted(2, 6, grid, idempotency_key="k", digest=b"1", owner="else"))
        assert new
        assert other["id"] != first["id"]


async def test_a_job_that_was_taken_is_told_again_whatever_is_too_late_or_too_much_by_now(tmp_path: Path) -> None:
    grid = TurnedGrid(CLEAN_AT_3)
    asked = wanted(["x" * 10_000] * 110, 1, grid, idempotency_key="k", digest=b"1")
    async with desk_of(tmp_path, grid, runs=False, max_open_jobs=1, max_stored_bytes=1 << 20) as desk:
        first, _ = await desk.submit(asked)
        grid.wait(2)
        again, new = await desk.submit(asked)
        assert (again["id"], new) == (first["id"], False)


async def test_a_cancelled_job_is_computed_no_further_and_what_comes_of_its_leases_is_dropped(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 8)
    async with desk_of(tmp_path, grid) as desk:
        job, _ = await desk.submit(wanted(40, 6, grid))
        lease = await leased(desk)
        cancelled = await desk.cancel("", job["id"])
        assert cancelled["state"] == "cancelled"
        await desk.give(lease.id, lease.job, computed(lease), 1.0)
        assert await idle(desk)
        assert (await desk.show("", job["id"]))["texts_done"] == 0
        with pytest.raises(JobConflict, match="was cancelled, and has no results"):
            await desk.results("", job["id"], 0, 1)
        assert (await desk.cancel("", job["id"]))["state"] == "cancelled"


async def test_a_job_that_is_done_cannot_be_cancelled(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0])
    async with desk_of(tmp_path, grid) as desk:
        job, _ = await desk.submit(wanted(1, 1, grid))
        await work_off(desk)
        with pytest.raises(JobConflict, match="done"):
            await desk.cancel("", job["id"])


async def test_nobody_sees_the_jobs_of_another(tmp_path: Path) -> None:
    grid = TurnedGrid(CLEAN_AT_3)
    async with desk_of(tmp_path, grid) as desk:
        job, _ = await desk.submit(wanted(1, 6, grid, owner="ann"))
        for ask in (desk.show("bob", job["id"]), desk.cancel("bob", job["id"]), desk.results("bob", job["id"], 0, 1)):
            with pytest.raises(UnknownJob):
                await ask
        assert await desk.listed("bob", None, None, 10) == []
        assert [one["id"] for one in await desk.listed("ann", "waiting", None, 10)] == [job["id"]]


async def test_a_list_of_one_state_is_read_to_its_end(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 8)
    async with desk_of(tmp_path, grid) as desk:
        made = [(await desk.submit(wanted(1, 6, grid)))[0]["id"] for _ in range(6)]
        runs = {lease.job for lease in [await desk.take(5), await desk.take(5)] if lease is not None}
        assert len(runs) == 2
        for state, expected in (("running", runs), ("waiting", set(made) - runs)):
            found: list[str] = []
            while page := await desk.listed("", state, found[-1] if found else None, 1):
                assert [one["state"] for one in page] == [state]
                found += [one["id"] for one in page]
            assert found == [job_id for job_id in reversed(made) if job_id in expected]


async def test_a_list_is_read_page_by_page_newest_first(tmp_path: Path) -> None:
    grid = TurnedGrid(CLEAN_AT_3)
    async with desk_of(tmp_path, grid) as desk:
        made = [(await desk.submit(wanted(1, 6, grid)))[0]["id"] for _ in range(5)]
        first = [one["id"] for one in await desk.listed("", None, None, 3)]
        rest = [one["id"] for one in await desk.listed("", None, first[-1], 3)]
    assert first + rest == made[::-1]


@pytest.mark.parametrize(
    ("limits", "texts", "within_hours", "error"),
    [
        ({"max_texts_per_job": 2}, 3, 1, InputTooLarge),
        ({}, 1, -1, InvalidInput),
        ({"max_deadline_days": 1}, 1, 25, InvalidInput),
        ({"max_open_jobs": 1}, 1, 1, Overloaded),
    ],
)
async def test_what_is_too_much_is_refused(
    tmp_path: Path, limits: dict[str, float], texts: int, within_hours: float, error: type[Exception]
) -> None:
    grid = TurnedGrid(CLEAN_AT_3)
    async with desk_of(tmp_path, grid, runs=False, **limits) as desk:
        await desk.submit(wanted(1, 1, grid))
        with pytest.raises(error):
            await desk.submit(wanted(texts, within_hours, grid))


async def test_jobs_that_come_at_one_moment_are_no_more_than_may_be_open(tmp_path: Path) -> None:
    grid = TurnedGrid(CLEAN_AT_3)
    async with desk_of(tmp_path, grid, runs=False, max_open_jobs=2) as desk:
        asked = [desk.submit(wanted(1, 1, grid)) for _ in range(6)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(one, Overloaded) for one in found) == 4
        assert len(await desk.listed("", None, None, 10)) == 2


async def test_a_full_file_takes_no_more_jobs(tmp_path: Path) -> None:
    grid = TurnedGrid(CLEAN_AT_3)
    async with desk_of(tmp_path, grid, runs=False, max_stored_bytes=1 << 20) as desk:
        await desk.submit(wanted(["x" * 10_000] * 110, 1, grid))
        with pytest.raises(Overloaded, match="full"):
            await desk.submit(wanted(1, 1, grid))


async def test_ended_jobs_are_deleted_when_they_are_old_and_the_sums_stay(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 8)
    async with desk_of(tmp_path, grid, keep_days=1) as desk:
        job, _ = await desk.submit(wanted(3, 1, grid))
        await work_off(desk)
        waiting, _ = await desk.submit(wanted(3, 7 * 24, grid))
    grid.wait(25)
    async with desk_of(tmp_path, grid, keep_days=1) as desk:
        await until(lambda: (tmp_path / "jobs.json").exists())
        await asyncio.sleep(0.3)
        with pytest.raises(UnknownJob):
            await desk.show("", job["id"])
        assert (await desk.show("", waiting["id"]))["id"] == waiting["id"]
    assert json.loads((tmp_path / "jobs.json").read_text())["done"] == 1


async def test_a_clock_that_is_set_back_holds_nothing_up(tmp_path: Path) -> None:
    grid = TurnedGrid(CLEAN_AT_3)
    grid.wait(4)
    async with desk_of(tmp_path, grid) as desk:
        await desk.submit(wanted(2, 100, grid))
    grid.time = START
    async with desk_of(tmp_path, grid) as desk:
        assert await work_off(desk) == 2


async def test_a_clock_that_is_set_while_texts_are_computed_makes_no_pace(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 24)
    async with desk_of(tmp_path, grid) as desk:
        await desk.submit(wanted(3, 20, grid))
        lease = await leased(desk)
        grid.wait(6)
        await desk.give(lease.id, lease.job, computed(lease), 1.0)
        assert desk._schedule.pace_s < 2 * FIRST_PACE_S


async def test_the_file_is_nobody_elses_and_has_one_owner(tmp_path: Path) -> None:
    grid = TurnedGrid(CLEAN_AT_3)
    async with desk_of(tmp_path, grid, runs=False):
        for name in os.listdir(tmp_path):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o077 == 0 or name == "jobs.json"
        with pytest.raises(JobStoreError, match="another server"):
            JobStore(tmp_path / "jobs.sqlite")


def test_a_file_that_is_no_database_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(JobStoreError, match="move it away"):
        JobStore(path)


async def test_a_thousand_jobs_of_all_deadlines_are_done_in_time_in_the_clean_hours(tmp_path: Path) -> None:
    grid = TurnedGrid([300.0 + 200.0 * (hour % 24 not in (11, 12, 13)) for hour in range(72)])
    async with desk_of(tmp_path, grid, runs=False, max_open_jobs=1000, margin_s=1800) as desk:
        ids = [(await desk.submit(wanted(1, 2 + n % 50, grid)))[0]["id"] for n in range(300)]
        for _ in range(60):
            await desk._plan()
            while (lease := await desk.take(0.001)) is not None:
                await desk.give(lease.id, lease.job, computed(lease), 1.0)
            grid.wait(1)
        done = [await desk.show("", job_id) for job_id in ids]
    assert {(one["state"], one["late"]) for one in done} == {("done", False)}
    clean = [one for one in done if one["started"][11:13] in ("11", "12", "13")]
    assert len(clean) == sum(2 + n % 50 - 0.5 > 11 for n in range(300))
    assert JobsSettings().margin_s < HOUR_S


async def test_what_is_missing_of_a_lease_is_leased_again(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 8)
    async with desk_of(tmp_path, grid) as desk:
        job, _ = await desk.submit(wanted(6, 6, grid))
        lease = await leased(desk)
        await desk.give(lease.id, lease.job, computed(lease)[:2], 1.0)
        again = await leased(desk)
        assert again.texts == lease.texts[2:]
        await desk.give(again.id, again.job, computed(again), 1.0)
        assert (await desk.show("", job["id"]))["texts_done"] == 6


async def test_what_comes_after_its_lease_was_lost_is_kept_and_not_computed_again(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 8)
    ahead_s = [0.0]
    async with desk_of(tmp_path, grid, clock=lambda: time.monotonic() + ahead_s[0]) as desk:
        job, _ = await desk.submit(wanted(20, 6, grid))
        lost = await leased(desk)
        ahead_s[0] = LEASE_TIMEOUT_S + 1
        await desk._tidy()
        await desk.give(lost.id, lost.job, computed(lost), 1.0)
        seen: list[int] = []
        await work_off(desk, seen=lambda lease: seen.extend(number for number, _, _ in lease.texts))
        done = await desk.show("", job["id"])
        assert (done["state"], done["texts_done"]) == ("done", 20)
    assert sorted(seen + [number for number, _, _ in lost.texts]) == list(range(20))


async def test_what_was_computed_twice_because_its_lease_was_lost_counts_once(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 8)
    async with desk_of(tmp_path, grid) as desk:
        job, _ = await desk.submit(wanted(4, 6, grid))
        lost = await leased(desk)
        await desk.give_back(lost.id)
        again = await leased(desk)
        await desk.give(lost.id, lost.job, computed(lost)[:3], 1.5)
        await desk.give(again.id, again.job, computed(again), 4.0)
        done = await desk.show("", job["id"])
        assert (done["state"], done["texts_done"], done["texts_metered"], done["joules"]) == ("done", 4, 4, 2.5)
        assert len(await desk.results("", job["id"], 0, 10)) == 4


async def test_a_lease_of_the_run_before_is_kept_by_the_next_for_its_own_job(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 8)
    async with desk_of(tmp_path, grid) as desk:
        first, _ = await desk.submit(wanted(4, 6, grid))
        before = await leased(desk)
    async with desk_of(tmp_path, grid, runs=False) as desk:
        second, _ = await desk.submit(wanted(["w1", "w2", "w3", "w4"], 1, grid))
        await desk._plan()
        now = await leased(desk)
        assert now.job == second["id"]
        await desk.give(before.id, before.job, computed(before), 1.0)
        assert (await desk.show("", first["id"]))["state"] == "done"
        assert (await desk.show("", second["id"]))["texts_done"] == 0
        await desk.give(now.id, now.job, computed(now), 1.0)
        results = await desk.results("", second["id"], 0, 10)
    assert [json.loads(row)["text"] for row in results] == ["w1", "w2", "w3", "w4"]


@contextmanager
def failing(desk: JobDesk) -> Iterator[None]:
    """Whatever the file is asked for fails meanwhile."""
    desk._store._db.set_progress_handler(lambda: 1, 1)
    try:
        yield
    finally:
        desk._store._db.set_progress_handler(None, 0)


async def test_what_the_file_failed_to_keep_is_leased_again(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 8)
    async with desk_of(tmp_path, grid) as desk:
        job, _ = await desk.submit(wanted(4, 6, grid))
        lease = await leased(desk)
        with failing(desk), pytest.raises(NotReady, match="their file cannot be used"):
            await desk.give(lease.id, lease.job, computed(lease), 1.0)
        assert (await desk.show("", job["id"]))["state"] == "waiting"
        assert await work_off(desk, wait_s=5) == 4
        assert (await desk.show("", job["id"]))["state"] == "done"


async def test_while_the_file_keeps_nothing_texts_are_computed_more_and_more_seldom(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 8)
    ahead_s = 0.0
    async with desk_of(tmp_path, grid, clock=lambda: time.monotonic() + ahead_s) as desk:
        await desk.submit(wanted(4, 6, grid))
        for failures in range(4):
            ahead_s += HOLD_S * 2**failures  # beyond the last hold
            lease = await leased(desk)
            with failing(desk), pytest.raises(NotReady):
                await desk.give(lease.id, lease.job, computed(lease), 1.0)
        assert await desk.take(0.2) is None
        ahead_s += HOLD_S * 2**4
        assert await work_off(desk, wait_s=5) == 4


async def test_texts_that_the_file_failed_to_read_are_leased_again(tmp_path: Path) -> None:
    grid = TurnedGrid([100.0] * 8)
    async with desk_of(tmp_path, grid) as desk:
        await desk.submit(wanted(4, 6, grid))
        with failing(desk), pytest.raises(NotReady):
            await desk.take(5)
        assert await work_off(desk) == 4


async def test_while_jobs_are_planned_everybody_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = TurnedGrid([100.0] * 8)
    go_on = threading.Event()
    async with desk_of(tmp_path, grid, runs=False) as desk:
        job, _ = await desk.submit(wanted(4, 6, grid))
        planned = desk._schedule.planned

        def slowly(*given: Any) -> Planned:
            go_on.wait(10)
            return planned(*given)

        monkeypatch.setattr(desk._schedule, "planned", slowly)
        planning = asyncio.create_task(desk._plan())
        await desk.submit(wanted(2, 6, grid))
        assert (await desk.cancel("", job["id"]))["state"] == "cancelled"
        assert not planning.done()
        go_on.set()
        await planning
        assert await desk.take(0.05) is None  # a cancelled job, and one that came after the plan was begun
        await desk._plan()
        assert await work_off(desk) == 2


def test_planning_that_takes_long_is_done_more_seldom() -> None:
    schedule = Schedule(0, 1)
    for cpu_s, rest_s in ((0.001, 0.25), (0.1, 2.0)):
        schedule.take_up(Planned(plan([], [], 0.0), deque(), cpu_s))
        assert schedule.rest_s == pytest.approx(rest_s)


def test_a_full_disk_costs_nothing_of_what_comes_after(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    large = Wanted("", [Text("x" * 100_000)], 9e9)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.add(large, 1.0, None)
    store._db.execute("PRAGMA max_page_count = 1000000")
    job, new = store.add(large, 1.0, None)
    assert new
    assert [one.id for one in store.open_jobs()] == [job.id]
    store.close()
