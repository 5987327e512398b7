"""`/jobs` over HTTP: submissions as JSON and as files, and every refusal as documented."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.app import App
from server.api.replies import JobsIntake, Replies
from server.engine.family import Family
from server.guard import Guard
from server.jobs import desk as desk_module
from tests.support.engines import running
from tests.support.jobs import TurnedGrid, desk_of, work_off
from tests.support.listening import NoJoules

MAX_JOB_BODY = 20_000
ROWS = {"content-type": "application/x-ndjson"}
LINES = {"content-type": "text/plain; charset=utf-8"}


@asynccontextmanager
async def serving(
    family: Family, folder: Path, guard: Guard | None = None, **limits: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    grid = TurnedGrid([100.0] * 8)
    async with running(family, max_text_chars=200) as (engine, usage), desk_of(folder, grid, **limits) as desk:
        jobs = JobsIntake(desk, MAX_JOB_BODY, 50)
        app = App(Replies(engine, NoJoules(), 1000, usage, guard, jobs=jobs), dict)
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client, desk


async def test_a_job_goes_its_way_from_submission_to_results(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(family, tmp_path) as (client, desk):
        body = {"inputs": [["my card"], ["refund"]], "within_s": 3600}
        made = await client.post("/jobs", json=body, headers={"Idempotency-Key": "a b"})
        again = await client.post("/jobs", json=body, headers={"Idempotency-Key": "a b"})
        assert (made.status_code, again.status_code) == (201, 200)
        assert made.headers["location"] == f"/jobs/{made.json()['id']}"
        assert made.json()["deadline"] == "2025-01-06T01:00:00Z"
        early = await client.get(f"{made.headers['location']}/results")
        assert (early.status_code, early.json()["error_type"]) == (409, "Conflict")
        await work_off(desk)
        shown = await client.get(made.headers["location"])
        assert shown.json()["state"] == "done"
        page = await client.get(f"{made.headers['location']}/results?limit=1")
        assert page.json() == {"results": [{"text": "my card"}], "next": 1}
        rest = await client.get(f"{made.headers['location']}/results?start=1")
        assert rest.json() == {"results": [{"text": "refund"}], "next": None}
        whole = await client.get(f"{made.headers['location']}/results?limit=2")
        assert whole.json()["next"] is None
        monkeypatch.setattr(desk_module, "PAGE_BYTES", 20)
        small = await client.get(f"{made.headers['location']}/results")
        assert small.json() == {"results": [{"text": "my card"}], "next": 1}
        listed = await client.get("/jobs?state=done")
        assert [one["id"] for one in listed.json()["jobs"]] == [made.json()["id"]]
        refused = await client.delete(made.headers["location"])
        assert refused.status_code == 409


async def test_a_file_has_a_text_a_line_and_its_deadline_in_the_query(family: Family, tmp_path: Path) -> None:
    async with serving(family, tmp_path) as (client, _):
        lines = await client.post("/jobs?deadline=2025-01-06T02:00", content="my card\n\nrefund\r\n", headers=LINES)
        rows = await client.post("/jobs?within_s=60&truncate=true", content='"my card"\n["refund"]\n', headers=ROWS)
    assert (lines.status_code, lines.json()["texts"], lines.json()["deadline"]) == (201, 2, "2025-01-06T02:00:00Z")
    assert (rows.status_code, rows.json()["texts"]) == (201, 2)


async def test_a_submission_may_be_larger_than_a_request_that_waits(family: Family, tmp_path: Path) -> None:
    async with serving(family, tmp_path) as (client, _):
        large = await client.post("/jobs", json={"inputs": [["x" * 190]] * 40, "within_s": 60})
        too_large = await client.post("/jobs", json={"inputs": [["x" * 190]] * 120, "within_s": 60})
        usual = await client.post("/predict", json={"inputs": [["x" * 190]] * 40})
    assert (large.status_code, too_large.status_code, usual.status_code) == (201, 413, 413)


WRONG: dict[str, tuple[dict[str, Any], int]] = {
    "no deadline": ({"inputs": "card"}, 422),
    "two deadlines": ({"inputs": "card", "within_s": 1, "deadline": "2025-01-06T02:00"}, 422),
    "a past deadline": ({"inputs": "card", "deadline": "2024-01-06T02:00"}, 422),
    "a far deadline": ({"inputs": "card", "within_s": 1e8}, 422),
    "a deadline that is no time": ({"inputs": "card", "deadline": "tomorrow"}, 422),
    "a number of seconds that is none": ({"inputs": "card", "within_s": True}, 422),
    "negative seconds": ({"inputs": "card", "within_s": -1}, 422),
    "no texts": ({"inputs": [], "within_s": 60}, 400),
    "an empty text": ({"inputs": [["card"], [" "]], "within_s": 60}, 400),
    "a pair": ({"inputs": [["card", "card"]], "within_s": 60}, 422),
    "a long text": ({"inputs": [["card"], ["x" * 201]], "within_s": 60}, 413),
    "many texts": ({"inputs": [["a"]] * 51, "within_s": 60}, 413),
    "an unknown field": ({"inputs": "card", "within_s": 60, "quality": "eco"}, 422),
    "no inputs": ({"within_s": 60}, 422),
}


@pytest.mark.parametrize(("body", "status"), WRONG.values(), ids=WRONG)
async def test_what_is_wrong_is_refused_by_name(
    family: Family, tmp_path: Path, body: dict[str, Any], status: int
) -> None:
    async with serving(family, tmp_path) as (client, _):
        reply = await client.post("/jobs", json=body)
        assert reply.status_code == status
        assert set(reply.json()) == {"error", "error_type"}
        assert (await client.get("/jobs")).json()["jobs"] == []


FILES: dict[str, tuple[str, bytes, dict[str, str], int]] = {
    "not JSON": ("within_s=60", b'"a"\nb\n', ROWS, 422),
    "no text": ("within_s=60", b"\n \n", LINES, 400),
    "not UTF-8": ("within_s=60", b"\xff\xfe", LINES, 422),
    "half a surrogate pair": ("within_s=60", b'"\\ud800"\n', ROWS, 422),
    "many lines": ("within_s=60", b"a\n" * 51, LINES, 413),
    "a flag that is none": ("within_s=60&truncate=1", b"a", LINES, 422),
    "seconds that are none": ("within_s=nan", b"a", LINES, 422),
    "an unknown parameter": ("within_s=60&x=1", b"a", LINES, 422),
    "JSON with a query": ("within_s=60", b'{"inputs": "a", "within_s": 60}', {}, 422),
    "an empty body": ("", b"", {}, 400),
    "an idempotency key of nothing": ("within_s=60", b"a", {**LINES, "Idempotency-Key": " "}, 422),
    "a compressed body": ("within_s=60", b"a", {**LINES, "content-encoding": "gzip"}, 422),
}


@pytest.mark.parametrize(("query", "body", "headers", "status"), FILES.values(), ids=FILES)
async def test_a_file_that_is_wrong_is_refused(
    family: Family, tmp_path: Path, query: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    async with serving(family, tmp_path) as (client, _):
        reply = await client.post(f"/jobs?{query}" if query else "/jobs", content=body, headers=headers)
    assert reply.status_code == status, reply.text


@pytest.mark.parametrize(
    "path", ["/jobs?state=odd", "/jobs?limit=0", "/jobs?limit=x", "/jobs?what=1", "/jobs/a/results?start=-1"]
)
async def test_a_query_that_is_wrong_is_refused(family: Family, tmp_path: Path, path: str) -> None:
    async with serving(family, tmp_path) as (client, _):
        assert (await client.get(path)).status_code == 422


async def test_while_the_file_cannot_be_used_every_route_says_so_as_documented(family: Family, tmp_path: Path) -> None:
    body = {"inputs": "card", "within_s": 60}
    async with serving(family, tmp_path) as (client, desk):
        place = (await client.post("/jobs", json=body)).headers["location"]
        desk._store._db.set_progress_handler(lambda: 1, 1)
        asked = (("POST", "/jobs"), ("GET", "/jobs"), ("GET", place), ("GET", f"{place}/results"), ("DELETE", place))
        replies = [
            await client.request(method, path, json=body if method == "POST" else None) for method, path in asked
        ]
        desk._store._db.set_progress_handler(None, 0)
        assert {(one.status_code, one.json()["error_type"], one.headers["retry-after"]) for one in replies} == {
            (503, "Unhealthy", "1")
        }
        assert (await client.delete(place)).status_code == 200


async def test_without_a_key_nobody_submits_and_each_key_has_its_own_jobs(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("ann", "bob")}
    path.write_text("".join(f"{name}: sha256:{digest}\n" for name, digest in digests.items()))
    path.chmod(0o600)
    body = {"inputs": "card", "within_s": 60}
    async with serving(family, tmp_path, Guard(path, None, lambda: 0.0)) as (client, _):
        assert (await client.post("/jobs", json=body)).status_code == 401
        ann, bob = ({"Authorization": f"Bearer {name}"} for name in ("ann", "bob"))
        made = await client.post("/jobs", json=body, headers=ann)
        assert made.status_code == 201
        place = made.headers["location"]
        statuses = [(await client.get(place, headers=who)).status_code for who in (ann, bob)]
        assert statuses == [200, 404]
        assert (await client.delete(place, headers=bob)).status_code == 404
        assert (await client.get("/jobs", headers=bob)).json()["jobs"] == []
        assert (await client.delete(place, headers=ann)).json()["state"] == "cancelled"


async def test_every_answer_is_in_the_openapi_document(family: Family, tmp_path: Path) -> None:
    async with serving(family, tmp_path) as (client, _):
        document = (await client.get("/openapi.json")).json()
        page = await client.get("/docs")
    assert page.status_code == 200
    paths = document["paths"]
    assert {path for path in paths if path.startswith("/jobs")} == {"/jobs", "/jobs/{job_id}", "/jobs/{job_id}/results"}
    assert set(paths["/jobs"]["post"]["responses"]) == {"200", "201", "400", "408", "413", "422", "429", "503"}
    assert set(paths["/jobs/{job_id}"]["delete"]["responses"]) == {"200", "404", "408", "409", "413", "503"}
    known = set(document["components"]["schemas"])
    for reference in json.dumps(document).split("#/components/schemas/")[1:]:
        assert reference.split('"')[0] in known


async def test_without_jobs_there_is_no_such_route(family: Family) -> None:
    async with running(family) as (engine, usage):
        app = App(Replies(engine, NoJoules(), 1000, usage), dict)
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/jobs")).status_code == 404
