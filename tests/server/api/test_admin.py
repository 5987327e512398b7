"""`/admin`: the settings of the running server over HTTP, for whoever has an administrator's key."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.admin import Admin
from server.api.app import App
from server.api.replies import Replies
from server.config import Settings
from server.engine.family import Family
from server.guard import Guard
from server.shaping import audit
from server.shaping.tunables import Tunables
from server.shaping.tuning import audit_path, begin, load, tune
from tests.support.apps import MAX_BODY, Meter
from tests.support.engines import running

KEY, USER_KEY = "admin-key-0123456789", "user-key-0123456789"
AUTH = {"Authorization": f"Bearer {KEY}"}


def key_file(folder: Path, name: str, key: str) -> Path:
    path = folder / name
    path.write_text(f"{name}: sha256:{hashlib.sha256(key.encode()).hexdigest()}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "tuning.json"
    begin(path, Tunables.of(Settings()))
    return path


@pytest.fixture
async def client(family: Family, file: Path, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running(family) as (engine, usage):
        users = Guard(key_file(tmp_path, "users", USER_KEY), None, lambda: 0.0)
        admin = Admin(file, lambda: engine.family.points, Guard(key_file(tmp_path, "ann", KEY), None, lambda: 0.0))
        app = App(Replies(engine, Meter(), MAX_BODY, usage, users), dict, admin=admin)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


async def test_what_is_in_force_and_what_can_be_set_is_shown(client: httpx.AsyncClient) -> None:
    shown = (await client.get("/admin/tuning", headers=AUTH)).json()
    assert (shown["version"], shown["settings"]["shaping"]["policy"]) == (0, "percentile")
    assert shown["points"][0] == "full"
    field = shown["fields"]["batching.max_rows"]
    assert field["default"] == 16
    assert "texts in a batch" in field["description"]
    assert "shaping.floors.eco" in shown["fields"]


async def test_a_change_equals_that_of_the_command_line(client: httpx.AsyncClient, file: Path, tmp_path: Path) -> None:
    changes = {"shaping.dirty_above_grams_per_kwh": "320", "batching.max_rows": 8}
    reply = await client.patch("/admin/tuning", headers=AUTH, json={"changes": changes, "expected_version": 0})
    assert (reply.status_code, reply.json()["version"]) == (200, 1)
    other = tmp_path / "other" / "tuning.json"
    begin(other, Tunables.of(Settings()))
    assert load(file) == tune(other, changes)
    assert load(file).shaping.policy == "threshold"


async def test_the_key_s_name_signs_and_the_log_shows_the_newest_first(client: httpx.AsyncClient, file: Path) -> None:
    await client.patch("/admin/tuning", headers=AUTH, json={"changes": {"cache.ttl_s": 9}})
    back = await client.post("/admin/tuning/undo", headers=AUTH)
    assert (back.status_code, back.json()["settings"]["cache"]["ttl_s"]) == (200, 300)
    entries = (await client.get("/admin/audit?limit=2", headers=AUTH)).json()["entries"]
    assert [(e["version"], e["who"], e["via"], e["restored"]) for e in entries] == [
        (2, "ann", "http", 0),
        (1, "ann", "http", None),
    ]
    to_one = await client.post("/admin/tuning/undo", headers=AUTH, json={"to": 1})
    assert to_one.json()["settings"]["cache"]["ttl_s"] == 9
    assert [e.to_dict() for e in audit.read(audit_path(file))][-1]["restored"] == 1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"changes": {"cache.ttl_s": -1, "shaping.polcy": "off"}}, 422, "did you mean 'shaping.policy'"),
        ({"changes": {"cache.ttl_s": -1}}, 422, "cache.ttl_s"),
        ({"changes": {"server.port": 1}}, 422, "cannot change while running"),
        ({"changes": {"shaping.policy": "pin", "shaping.pin_point": "nowhere"}}, 422, "no operating point 'nowhere'"),
        ({"changes": {}}, 422, "changes"),
        ({"change": {"cache.ttl_s": 1}}, 422, "change"),
        ([], 422, "body"),
        ({"changes": {"cache.ttl_s": 9}, "expected_version": 5}, 409, "look again"),
    ],
)
async def test_what_cannot_be_taken_is_said_and_nothing_of_it_is_taken(
    client: httpx.AsyncClient, file: Path, body: Any, status: int, said: str
) -> None:
    reply = await client.patch("/admin/tuning", headers=AUTH, json=body)
    assert reply.status_code == status
    assert said in reply.json()["error"]
    assert (load(file).version, len(audit.read(audit_path(file)))) == (0, 1)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/admin/tuning"), ("PATCH", "/admin/tuning"), ("POST", "/admin/tuning/undo"), ("GET", "/admin/audit")],
)
@pytest.mark.parametrize("auth", [None, "Bearer wrong", f"Bearer {USER_KEY}", "Basic YTpi"])
async def test_nobody_without_an_administrator_s_key_is_let_in(
    client: httpx.AsyncClient, file: Path, method: str, path: str, auth: str | None
) -> None:
    headers = {} if auth is None else {"Authorization": auth}
    reply = await client.request(method, path, headers=headers, json={"changes": {"cache.ttl_s": 9}})
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
    assert load(file).version == 0


async def test_an_administrator_s_key_opens_nothing_else(client: httpx.AsyncClient) -> None:
    assert (await client.post("/predict", headers=AUTH, json={"inputs": "card"})).status_code == 401


async def test_without_a_key_file_it_is_closed(family: Family, file: Path) -> None:
    async with running(family) as (engine, usage):
        app = App(
            Replies(engine, Meter(), MAX_BODY, usage), dict, admin=Admin(file, lambda: engine.family.points, None)
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            reply = await client.get("/admin/tuning")
    assert reply.status_code == 403
    assert "server.admin_keys_file" in reply.json()["error"]


async def test_a_folder_that_is_not_shared_is_told(client: httpx.AsyncClient, file: Path) -> None:
    os.unlink(file)
    reply = await client.get("/admin/tuning", headers=AUTH)
    assert reply.status_code == 422
    assert "does not exist" in reply.json()["error"]
