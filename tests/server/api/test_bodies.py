"""Bodies in pieces, too large, cut off or made of anything, and clients that leave."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api.http import watcher
from server.engine.engine import never_gone
from server.engine.family import Family
from tests.support.apps import MAX_BODY, chunk, exchange, post, serving
from tests.support.engines import gated, until


async def test_a_body_may_come_in_pieces(family: Family) -> None:
    async with serving(family) as (_, app, _):
        sent = await exchange(app, [chunk(b'{"inp', True), chunk(b"", True), chunk(b'uts": "card"}')])
    assert sent[0]["status"] == 200


async def test_a_body_that_grows_too_large_is_refused_before_it_is_complete(family: Family) -> None:
    async with serving(family) as (_, app, _):
        sent = await exchange(app, [chunk(b"x" * (MAX_BODY - 1), True), chunk(b"xx", True)])
    assert sent[0]["status"] == 413


async def test_to_a_client_that_leaves_nothing_is_said(family: Family) -> None:
    async with serving(family) as (_, app, engine):
        assert await exchange(app, [chunk(b'{"inputs"', True), {"type": "http.disconnect"}]) == []
        assert engine.active == 0


class Cycle:
    """What uvicorn's `receive` is a method of."""

    disconnected = False

    async def receive(self) -> Any:
        return None


async def test_a_client_that_left_is_noticed_without_waiting_for_it() -> None:
    cycle = Cycle()
    gone = watcher(cycle.receive)
    assert not gone()
    cycle.disconnected = True
    assert gone()


async def test_a_server_that_cannot_tell_counts_every_client_as_there() -> None:
    async def receive() -> Any:
        return None

    assert watcher(receive) is never_gone


awkward = st.text(max_size=30) | st.sampled_from(["\x00", "poison", "card", "[SEP]", "\u202e", "\U0001f600" * 9])


bodies = st.one_of(
    st.binary(max_size=50),
    st.builds(
        lambda inputs, flags: orjson.dumps({"inputs": inputs, **flags}),
        awkward | st.lists(awkward, max_size=3) | st.lists(st.lists(awkward, max_size=3), max_size=4),
        st.fixed_dictionaries(
            {},
            optional={
                "truncate": st.booleans(),
                "raw_scores": st.booleans(),
                "truncation_direction": st.sampled_from(["left", "right", "up"]),
            },
        ),
    ),
)


qualities = st.none() | st.sampled_from([b"strict", b"eco"]) | st.binary(max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(bodies, qualities), max_size=12))
def test_whatever_is_sent_the_answer_is_a_result_or_the_senders_fault(
    family: Family, requests: list[tuple[bytes, bytes | None]]
) -> None:
    async def play() -> None:
        async with serving(family) as (_, app, engine):
            calls = (
                exchange(app, [chunk(body)], [] if quality is None else [(b"x-quality", quality)])
                for body, quality in requests
            )
            for start, body in await asyncio.gather(*calls):
                assert start["status"] == 200 or 400 <= start["status"] < 500
                document = orjson.loads(body["body"])
                assert isinstance(document, list) == (start["status"] == 200)
            assert (engine.active, engine.queued) == (0, 0)

    asyncio.run(play())


async def test_over_a_real_connection_the_text_of_a_client_that_hung_up_is_not_computed(family: Family) -> None:
    held, gates = gated(family)
    full = gates["full"]
    full.gate.clear()
    async with serving(held) as (client, app, engine):
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        listening = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        first = asyncio.create_task(post(client, "w1"))
        await until(lambda: bool(full.batches))
        body = b'{"inputs": "hung up"}'
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await until(lambda: engine.queued == 1)
        writer.close()
        await writer.wait_closed()
        await until(lambda: not server.server_state.connections)
        full.gate.set()
        assert (await first).status_code == 200
        await until(lambda: engine.queued == 0 and engine.active == 0)
        server.should_exit = True
        await listening
    assert len(full.rows) == 1
