"""The short way for `/predict` speaks HTTP/1.1 like the long one, over real sockets under a real uvicorn server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from server.api.fast_http import MAX_PIPELINED
from server.api.http import MAX_HEAD_BYTES, Reply
from server.engine.family import Family
from tests.support.engines import until
from tests.support.listening import BODY, LANES, MAX_BODY_BYTES, Running, chunked, listening, post


@pytest.fixture
async def running(family: Family) -> AsyncIterator[Running]:
    async with listening(family) as running:
        yield running


async def test_many_requests_on_one_connection_are_answered(running: Running) -> None:
    async with httpx.AsyncClient(base_url=running.url) as client:
        for word in ("card", "refund", "parcel"):
            reply = await client.post("/predict", json={"inputs": f"my {word}"}, headers={"X-Quality": "strict"})
            assert reply.status_code == 200
            assert reply.json()[0]["label"] == word
            assert reply.headers["x-jouleserve-point"] == "full"
            assert reply.headers["content-type"] == "application/json"
            assert "date" in reply.headers


async def test_a_connection_that_asks_for_another_route_is_handed_over(running: Running) -> None:
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=running.url, limits=limits) as client:
        assert (await client.post("/predict", json={"inputs": "card"})).status_code == 200
        assert (await client.get("/info")).json()["model_id"] == "tiny"
        assert (await client.post("/predict", json={"inputs": "card"})).status_code == 200
        assert (await client.get("/predict")).status_code == 405
        assert (await client.get("/nowhere")).status_code == 404


async def test_both_ways_give_the_same_answer(running: Running) -> None:
    short = await running.raw(post())
    long = await running.raw(post().replace(b"/predict", b"/predict?long=1"))
    assert short.split(b"\r\n\r\n")[1] == long.split(b"\r\n\r\n")[1]


async def test_both_ways_refuse_too_large_a_body_in_the_same_words(running: Running) -> None:
    large = b"x" * (MAX_BODY_BYTES + 1)
    requests = [form(path) for form in (announced(large), in_chunks(large)) for path in LANES.values()]
    bodies = {(await running.raw(request)).partition(b"\r\n\r\n")[2] for request in requests}
    assert len(bodies) == 1
    assert b"send fewer or shorter texts" in bodies.pop()


def announced(body: bytes) -> Callable[[str], bytes]:
    return lambda path: post(body, path=path)


def in_chunks(body: bytes) -> Callable[[str], bytes]:
    return lambda path: chunked(body, path=path)


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n\r\n", b"\n"])
@pytest.mark.parametrize("path", LANES.values(), ids=LANES)
async def test_empty_lines_before_a_request_are_ignored(running: Running, blank: bytes, path: str) -> None:
    request = post(BODY, "connection: close", path=path)
    assert (await running.raw(blank + request)).startswith(b"HTTP/1.1 200")
    for parts in ([blank, request], [bytes([byte]) for byte in blank + request]):
        assert (await running.raw(post(), *parts, pause_s=0.002)).count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("pieces", [1, 2])
async def test_too_long_a_request_line_is_414_and_goes_no_further(running: Running, pieces: int) -> None:
    request = b"GET /info?" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n"
    parts = [request] if pieces == 1 else [request[:9000], request[9000:]]
    received, closed = await running.talk(*parts, pause_s=0.05)
    assert received.startswith(b"HTTP/1.1 414 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert closed
    assert running.usage.outcomes == {"refused": 1}


async def test_http_1_0_knows_no_leave_to_send(running: Running) -> None:
    request = post(BODY, "expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert (await running.raw(request)).startswith(b"HTTP/1.1 200")


async def test_a_trailer_is_no_header(running: Running) -> None:
    received = await running.raw(chunked(BODY, end=b"0\r\nx-quality: strict\r\n\r\n"))
    assert received.startswith(b"HTTP/1.1 200")
    assert b"x-jouleserve-reason: strict" not in received


async def test_who_reads_no_replies_gets_to_ask_no_more_until_it_does(running: Running) -> None:
    """What waits then is at most what comes in one piece of reading."""
    one = post(BODY, f"x-padding: {'x' * 4000}")
    most = 256 * 1024 // len(one) + MAX_PIPELINED
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await loop.sock_connect(client, ("127.0.0.1", running.port))
    await until(lambda: bool(running.server.server_state.connections))
    (connection,) = running.server.server_state.connections
    # Replies that fill the buffers of the way back soon.
    running.replies.predict = large_reply  # type: ignore[method-assign, assignment]
    asked, waiting, unsent = 0, 0, 0
    with contextlib.suppress(TimeoutError):
        while asked < 5000:
            await asyncio.wait_for(loop.sock_sendall(client, one), 1)
            asked += 1
            waiting = max(waiting, len(connection._waiting))  # type: ignore[union-attr]
            unsent = max(unsent, connection._transport.get_write_buffer_size())  # type: ignore[union-attr]
    assert asked < 5000, "the server reads on"
    assert waiting <= most
    assert unsent < 65536 + 2 * len(LARGE.body)
    answered = 0
    while answered < asked:
        piece = await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 10)
        assert piece, "closed too early"
        answered += piece.count(b"!")
    client.close()


LARGE = Reply(200, b"x" * 20_000 + b"!")


async def large_reply(*_: object) -> Reply:
    return LARGE


async def test_a_request_that_comes_byte_by_byte_is_read(running: Running) -> None:
    received = await running.raw(*(bytes([byte]) for byte in post()), pause_s=0.0005)
    assert received.startswith(b"HTTP/1.1 200")


async def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    requests = [post(json.dumps({"inputs": word}).encode()) for word in ("card", "refund", "parcel") * 10]
    received = await running.raw(b"".join(requests))
    labels = [json.loads(part.split(b"HTTP/1.1")[0])[0]["label"] for part in received.split(b"\r\n\r\n")[1:]]
    assert labels == ["card", "refund", "parcel"] * 10


async def test_a_chunked_body_is_read(running: Running) -> None:
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = b"%x\r\n%b\r\n" % (5, BODY[:5]) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY) - 5, BODY[5:])
    assert (await running.raw(head, chunks)).startswith(b"HTTP/1.1 200")


async def test_a_client_that_waits_for_leave_to_send_gets_it(running: Running) -> None:
    received = await running.raw(post(BODY, "expect: 100-continue"))
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


async def test_the_connection_closes_when_the_client_asks_for_it(running: Running) -> None:
    assert b"connection: close" in await running.raw(post(BODY, "connection: close"))


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b"x" * (MAX_BODY_BYTES + 1)),
        b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        + (b"7d0\r\n" + b"x" * 2000 + b"\r\n") * 2
        + b"0\r\n\r\n",
    ],
    ids=["announced", "chunked"],
)
async def test_a_body_over_the_limit_is_413_and_nobody_else_suffers(running: Running, request_bytes: bytes) -> None:
    received = await running.raw(request_bytes)
    assert received.startswith(b"HTTP/1.1 413")
    assert received.count(b"HTTP/1.1") == 1
    assert (await running.raw(post())).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /predict HTTP/1.1\r\nbad header line\r\n\r\n",
        b"POST /predict HTTP/1.1\r\ncontent-length: many\r\n\r\n",
        b"POST /predict HTTP/1.1\r\n" + b"a: " + b"b" * (MAX_HEAD_BYTES + 10),
    ],
    ids=["header", "length", "endless header"],
)
async def test_what_is_not_http_gets_a_4xx_and_the_connection_closes(running: Running, request_bytes: bytes) -> None:
    received = await running.raw(request_bytes)
    assert received[9:10] == b"4"
    assert b"connection: close" in received
    assert (await running.raw(post())).startswith(b"HTTP/1.1 200")


async def test_an_upgrade_is_refused_in_words(running: Running) -> None:
    received = await running.raw(post(BODY, "connection: Upgrade, HTTP2-Settings", "upgrade: h2c"))
    assert received.startswith(b"HTTP/1.1 422")
    assert b"upgrade" in received


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE"])
async def test_another_method_behind_a_request_is_left_to_another_connection(running: Running, method: bytes) -> None:
    received = await running.raw(post() + method + b" /predict HTTP/1.1\r\nhost: x\r\n\r\n")
    assert received.count(b"HTTP/1.1 ") == 1
    assert received.startswith(b"HTTP/1.1 200")


async def test_of_two_classes_the_first_counts(running: Running) -> None:
    received = await running.raw(post(BODY, "x-quality: strict", "x-quality: eco"))
    assert b"x-jouleserve-reason: strict" in received


async def test_an_unexpected_failure_is_a_500_and_the_connection_lives(running: Running) -> None:
    replies = running.replies
    answer, replies.predict = replies.predict, None  # type: ignore[method-assign, assignment]
    broken = asyncio.create_task(running.raw(post(), post(), pause_s=0.2))
    await asyncio.sleep(0.1)
    replies.predict = answer  # type: ignore[method-assign]
    received = await broken
    assert received.startswith(b"HTTP/1.1 500")
    assert b"HTTP/1.1 200" in received


async def test_a_request_half_read_at_shutdown_is_answered(running: Running) -> None:
    whole = post()
    pending = asyncio.create_task(running.raw(whole[:-5], whole[-5:], pause_s=0.4))
    await asyncio.sleep(0.1)
    running.server.should_exit = True
    assert (await pending).startswith(b"HTTP/1.1 200")


async def test_an_error_of_the_engine_keeps_the_connection(running: Running) -> None:
    received = await running.raw(post(b'{"inputs": []}'), post(), pause_s=0.1)
    assert received.startswith(b"HTTP/1.1 400")
    assert b"HTTP/1.1 200" in received


async def test_a_pause_within_a_request_is_not_measured_by_the_keep_alive_time(family: Family) -> None:
    whole = post()
    async with listening(family, keep_alive_s=1) as running:
        assert (await running.raw(whole[:-5], whole[-5:], pause_s=1.5)).startswith(b"HTTP/1.1 200")


async def test_a_client_that_left_is_noticed_before_its_batch_is_formed(running: Running) -> None:
    gate = asyncio.Event()
    asked: list[bool] = []

    async def predict(body: bytes, head: object, is_gone: object) -> None:
        await gate.wait()
        asked.append(is_gone())  # type: ignore[operator]

    replies = running.replies
    replies.predict = predict  # type: ignore[method-assign, assignment]
    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(post())
    await asyncio.sleep(0.1)
    writer.close()
    await asyncio.sleep(0.1)
    gate.set()
    await asyncio.sleep(0.1)
    assert asked == [True]


async def test_shutting_down_waits_for_the_request_in_flight(running: Running) -> None:
    gate = asyncio.Event()
    replies = running.replies
    answer = replies.predict

    async def predict(*arguments: Any) -> object:
        await gate.wait()
        return await answer(*arguments)

    replies.predict = predict  # type: ignore[method-assign, assignment]
    pending = asyncio.create_task(running.raw(post()))
    await asyncio.sleep(0.1)
    running.server.should_exit = True
    await asyncio.sleep(0.3)
    assert not pending.done()
    gate.set()
    assert (await pending).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("cut", [1, 7, 12, 20, 26, 60])
async def test_a_pipelined_request_may_be_cut_anywhere(running: Running, cut: int) -> None:
    first, second = post(), post(BODY, "connection: close")
    received = await running.raw(first + second[:cut], second[cut:], pause_s=0.05)
    assert received.count(b"HTTP/1.1 200") == 2


async def test_many_requests_in_one_piece_are_no_endless_head(running: Running) -> None:
    """The head of the last one is cut; what came before it is none of its bytes."""
    padded = post(BODY, f"x-padding: {'x' * 4000}")
    last = post(BODY, "connection: close")
    received = await running.raw(padded * 15 + last[:40], last[40:], pause_s=0.2)
    assert received.count(b"HTTP/1.1 200") == 16
