"""`X-Session`: one side of a divided dial for all requests of a session, in every protocol alike."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from server.engine.family import Family
from server.shaping.sides import Split
from tests.support.engines import dial
from tests.support.listening import listening
from tests.support.rpc import rpc_serving

HALF = Split("nano", 0.5)
DIVIDED = replace(dial("full"), split=HALF)
SESSIONS = ("ann", "bob", "cid", "dan", "eve", "fay")
SIDES = {session: "nano" if HALF.takes(session.encode()) else "full" for session in SESSIONS}


def test_the_sessions_of_these_tests_are_on_both_sides() -> None:
    assert set(SIDES.values()) == {"nano", "full"}


@pytest.mark.parametrize("path", ["/predict", "/predict?slow=1", "/v2/models/tiny/infer"])
async def test_a_session_s_requests_are_answered_by_one_point(family: Family, path: str) -> None:
    async with listening(family) as running:
        running.engine.reconfigure(running.engine.limits, DIVIDED)
        async with httpx.AsyncClient(base_url=running.url) as client:
            for session in SESSIONS:
                for number in range(4):
                    text = f"card {session} {number} {path}"
                    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
                    body = {"inputs": [tensor]} if path.startswith("/v2") else {"inputs": text}
                    reply = await client.post(path, json=body, headers={"X-Session": session})
                    told = reply.json().get("parameters", {}) if path.startswith("/v2") else None
                    point = told["point"] if told is not None else reply.headers["x-jouleserve-point"]
                    assert point == SIDES[session]


async def test_without_a_session_or_with_an_empty_one_the_text_decides(family: Family) -> None:
    async with listening(family) as running:
        running.engine.reconfigure(running.engine.limits, DIVIDED)
        async with httpx.AsyncClient(base_url=running.url) as client:
            for number in range(8):
                text = f"card {number}"
                for headers in ({}, {"X-Session": ""}):
                    reply = await client.post("/predict", json={"inputs": text}, headers=headers)
                    wanted = "nano" if HALF.takes(text.encode()) else "full"
                    assert reply.headers["x-jouleserve-point"] == wanted


async def test_grpc_names_the_session_in_its_metadata(family: Family) -> None:
    async with rpc_serving(family) as rpc:
        rpc.engine.reconfigure(rpc.engine.limits, DIVIDED)
        for session in SESSIONS:
            for number in range(4):
                reply = await rpc.predict(f"card {session} {number}", metadata=(("x-session", session),))
                assert reply.point == SIDES[session]


async def test_a_session_changes_sides_once_while_the_dial_moves() -> None:
    for session in SESSIONS:
        sides = [Split("nano", share / 100).takes(session.encode()) for share in range(1, 100)]
        assert sides == sorted(sides)
