"""Both lanes refuse what is too much, too deep, too slow or not allowed, in the same words, and count it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import httpx
import pytest

from server.api.http import Reply
from server.engine.family import Family
from server.guard import Guard, RateLimit
from tests.support.engines import until
from tests.support.listening import BODY, LANES, MAX_BODY_BYTES, Running, chunked, listening, post

pytestmark = pytest.mark.parametrize("path", LANES.values(), ids=LANES)
KEY = "open sesame"
CLOSE = "connection: close"


async def status_of(running: Running, path: str) -> int:
    """What an ordinary request gets now."""
    return int((await running.raw(post(BODY, CLOSE, path=path)))[9:12])


def said(received: bytes) -> tuple[int, str]:
    """Status and `error_type` of the one reply."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert received.count(b"HTTP/1.1 ") == 1, received[:200]
    return int(head[9:12]), json.loads(body)["error_type"]


TOO_MUCH = {
    "a deep nesting": (b"[" * 1900, 422),
    "a nesting within the parser's limit": (b'{"inputs": ' + b"[" * 500 + b"]" * 500 + b"}", 422),
    "many texts": (json.dumps({"inputs": [["a"]] * 5}).encode(), 413),
    "a long text": (json.dumps({"inputs": "x" * 101}).encode(), 413),
    "a long second text": (json.dumps({"inputs": ["a", "x" * 101]}).encode(), 413),
    "a large body": (b" " * (MAX_BODY_BYTES + 1), 413),
}


@pytest.mark.parametrize(("body", "status"), TOO_MUCH.values(), ids=TOO_MUCH)
async def test_a_body_beyond_a_limit_is_refused_and_counted(
    family: Family, path: str, body: bytes, status: int
) -> None:
    async with listening(family, max_texts_per_request=4, max_text_chars=100) as running:
        assert said(await running.raw(post(body, CLOSE, path=path))) == (status, "Validation")
        assert said(await running.raw(chunked(body[:20], body[20:], path=path))) == (status, "Validation")
        assert running.usage.outcomes == {"refused": 2}
        assert await status_of(running, path) == 200


async def test_at_the_limits_a_body_is_answered(family: Family, path: str) -> None:
    body = json.dumps({"inputs": [["x" * 100]] * 4}).encode().ljust(MAX_BODY_BYTES)
    async with listening(family, max_texts_per_request=4, max_text_chars=100) as running:
        assert (await running.raw(post(body, CLOSE, path=path))).startswith(b"HTTP/1.1 200")
        assert running.usage.outcomes["refused"] == 0


async def test_a_nesting_of_100_000_is_refused_without_recursion(family: Family, path: str) -> None:
    async with listening(family) as running:
        running.replies.max_body_bytes = 1_000_000
        for body in (b"[" * 100_000, b'{"inputs":' * 90_000):
            assert said(await running.raw(post(body, CLOSE, path=path))) == (422, "Validation")


async def test_a_client_that_sends_far_too_much_still_reads_why(family: Family, path: str) -> None:
    """Were the connection reset while it sends, it would see an error of the connection instead."""
    async with listening(family) as running, httpx.AsyncClient() as client:
        for _ in range(3):
            reply = await client.post(running.url + path, content=b"x" * 3_000_000)
            assert reply.status_code == 413


async def test_chunks_without_end_are_cut_off(family: Family, path: str) -> None:
    async with listening(family) as running:
        endless = chunked(*[b"x" * 1000] * 50, path=path, end=b"")
        received = await running.raw(*[endless] + [b"3e8\r\n" + b"x" * 1000 + b"\r\n"] * 50)
        assert said(received) == (413, "Validation")


async def test_one_byte_chunks_are_read(family: Family, path: str) -> None:
    async with listening(family) as running:
        chunks = [bytes([byte]) for byte in BODY]
        assert (await running.raw(chunked(*chunks, path=path))).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("part", ["line", "head", "body", "chunk"])
async def test_a_request_that_trickles_in_is_ended_in_time(
    family: Family, path: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("fast_http", "slow_lane", "app"):
        monkeypatch.setattr(f"server.api.{module}.READ_TIMEOUT_S", 0.2)
    whole = post(b" " * 1000, path=path)
    starts = {
        "line": whole[:8],
        "head": whole.partition(b"content-length")[0] + b"a: ",
        "body": whole[:-900],
        "chunk": chunked(BODY[:5], path=path, end=b"3e8\r\nab"),
    }
    # A keep-alive time that never ends has nothing to do with it.
    async with listening(family, keep_alive_s=3600) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(starts[part])
        trickle = asyncio.create_task(_trickle(writer))
        received = await asyncio.wait_for(_all(reader), 20)
        trickle.cancel()
        writer.close()
        assert received[9:12] == (b"" if part == "head" and "long" in path else b"408")
        await until(lambda: not running.server.server_state.connections)
        assert await status_of(running, path) == 200


async def _trickle(writer: asyncio.StreamWriter) -> None:
    while True:
        await asyncio.sleep(0.1)
        writer.write(b"x")


async def _all(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def test_headers_without_end_are_cut_off(family: Family, path: str) -> None:
    async with listening(family) as running:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\n".encode()
        received, closed = await running.talk(head, *[b"a: " + b"b" * 8000 + b"\r\n"] * 40, pause_s=0.001)
        assert closed
        assert received[9:10] in (b"", b"4")
        await until(lambda: not running.server.server_state.connections)
        assert await status_of(running, path) == 200


async def test_a_large_body_in_small_pieces_is_no_endless_trailer(family: Family, path: str) -> None:
    async with listening(family, max_text_chars=300_000) as running:
        running.replies.max_body_bytes = 1_000_000
        body = json.dumps({"inputs": "refund " + " " * 200_000}).encode()
        parts = [body[start : start + 8000] for start in range(0, len(body), 8000)]
        head = post(body, CLOSE, path=path).removesuffix(body)
        assert (await running.raw(head, *parts, pause_s=0.001)).startswith(b"HTTP/1.1 200")
        assert running.replies.intake.held_bytes == 0


async def test_trailers_without_end_are_cut_off(family: Family, path: str) -> None:
    """However large a body may be."""
    async with listening(family) as running:
        running.replies.max_body_bytes = 10_000_000
        start = chunked(BODY, path=path, end=b"0\r\na: ")
        received, closed = await running.talk(start, *[b"b" * 8000] * 20, pause_s=0.001)
        assert closed
        assert received[9:10] in (b"", b"4")
        await until(lambda: not running.server.server_state.connections)
        assert await status_of(running, path) == 200


async def test_who_does_not_read_the_reply_loses_the_connection(
    family: Family, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.slow_lane.READ_TIMEOUT_S", 0.3)

    async def predict(*_: object) -> Reply:
        return Reply(200, b"x" * 30_000_000)

    async with listening(family, keep_alive_s=1) as running:
        running.replies.predict = predict  # type: ignore[method-assign, assignment]
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1000)
        writer.write(post(path=path))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert running.server.server_state.connections
        await until(lambda: not running.server.server_state.connections)
        writer.close()


async def test_beyond_so_many_connections_one_more_is_told_to_come_back(family: Family, path: str) -> None:
    async with listening(family) as running:
        running.replies.intake.max_connections = 2
        writers = [(await asyncio.open_connection("127.0.0.1", running.port))[1] for _ in range(2)]
        for writer in writers:
            writer.write(post(path=path)[:-5])
        await until(lambda: len(running.server.server_state.connections) == 2)
        received, closed = await running.talk(b"")
        assert (said(received), closed) == ((429, "Overloaded"), True)
        assert b"retry-after: 1\r\n" in received
        for writer in writers:
            writer.close()
        await until(lambda: not running.server.server_state.connections)
        assert await status_of(running, path) == 200


async def test_bodies_that_are_being_read_are_bounded_together(family: Family, path: str) -> None:
    """Those that fit are answered; of one that does not, nothing is kept."""
    body = BODY.ljust(1900)
    whole = post(body, CLOSE, path=path)
    async with listening(family) as running:
        intake = running.replies.intake
        intake.max_bytes = 3000
        first = asyncio.create_task(running.raw(whole[:-100], whole[-100:], pause_s=0.6))
        await until(lambda: intake.held_bytes > 0)
        received, closed = await running.talk(whole[:-100], whole[-100:], pause_s=0.1)
        assert closed
        assert received == b"" if "long" in path else said(received) == (429, "Overloaded")
        assert (await first).startswith(b"HTTP/1.1 200")
        await until(lambda: intake.held_bytes == 0)
        assert (await running.raw(whole[:-100], whole[-100:], pause_s=0.1)).startswith(b"HTTP/1.1 200")


async def test_an_unfinished_body_is_counted_no_more_when_its_client_leaves(family: Family, path: str) -> None:
    async with listening(family) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(post(path=path)[:-5])
        await until(lambda: running.replies.intake.held_bytes > 0)
        writer.close()
        await until(lambda: running.replies.intake.held_bytes == 0)
        assert (await running.raw(post(BODY, CLOSE, path=path))).startswith(b"HTTP/1.1 200")


async def test_an_unexpected_failure_is_told_in_the_same_words(family: Family, path: str) -> None:
    async def predict(*_: object) -> None:
        raise RuntimeError("a secret")

    async with listening(family) as running:
        running.replies.predict = predict  # type: ignore[method-assign, assignment]
        received = await running.raw(post(BODY, CLOSE, path=path))
        assert said(received) == (500, "Backend")
        assert b"secret" not in received


def guard_of(folder: Path, rate: RateLimit | None = None) -> Guard:
    file = folder / "keys"
    file.write_text(f"ali: sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    file.chmod(0o600)
    return Guard(file, rate, lambda: 1.0)


async def test_only_who_sends_a_key_is_answered(family: Family, path: str, tmp_path: Path) -> None:
    async with (
        listening(family, guard=guard_of(tmp_path)) as running,
        httpx.AsyncClient(base_url=running.url) as client,
    ):
        key = {"authorization": f"Bearer {KEY}"}
        statuses = [
            (await client.post(path, content=BODY, headers=headers)).status_code
            for headers in (key, {}, {"authorization": "Bearer wrong"}, key)
        ]
        assert statuses == [200, 401, 401, 200]
        assert running.usage.outcomes["refused"] == 2


async def test_without_a_key_the_body_is_neither_kept_nor_read(family: Family, path: str, tmp_path: Path) -> None:
    async with listening(family, guard=guard_of(tmp_path)) as running:
        assert said(await running.raw(post(b"not json", CLOSE, path=path))) == (401, "Unauthenticated")
        leave = post(BODY, "expect: 100-continue", path=path)
        assert said(await running.raw(leave.removesuffix(BODY))) == (401, "Unauthenticated")


async def test_past_its_rate_a_key_is_told_when_to_come_back(family: Family, path: str, tmp_path: Path) -> None:
    guard = guard_of(tmp_path, RateLimit(0.5, 2))
    async with listening(family, guard=guard) as running:
        request = post(b'{"inputs": [["a"], ["b"]]}', f"authorization: Bearer {KEY}", CLOSE, path=path)
        assert (await running.raw(request)).startswith(b"HTTP/1.1 200")
        received = await running.raw(request)
        assert said(received) == (429, "RateLimited")
        assert b"retry-after: 4\r\n" in received


async def test_what_the_engine_has_counted_is_not_counted_again(family: Family, path: str) -> None:
    async with listening(family) as running:
        for body in (b'{"inputs": "poison"}', json.dumps({"inputs": "w1 " * 65}).encode()):
            await running.raw(post(body, CLOSE, path=path))
        assert running.usage.outcomes == {"error": 2}
        await running.raw(post(b'{"inputs": " "}', CLOSE, path=path))
        assert running.usage.outcomes == {"error": 2, "refused": 1}
