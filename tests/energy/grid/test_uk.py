"""The UK provider against a local server that replays payloads, good and bad."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from energy.grid.ladder import Ladder
from energy.grid.signal import (
    GridError,
    Implausible,
    Malformed,
    ProviderFailed,
    Refused,
    Throttled,
    Unreachable,
)
from energy.grid.uk import MAX_BODY_BYTES, MAX_WAIT_S, UkProvider

PAYLOADS = Path(__file__).parent / "payloads"
NOW = datetime(2024, 5, 1, 12, 17, tzinfo=UTC)


def payload(name: str) -> bytes:
    return (PAYLOADS / name).read_bytes()


def reply(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


OK = reply(200, payload("intensity_actual.json"))


class Stub:
    """Answers each request with the next scripted reply, the last one again and again; None never answers."""

    def __init__(self) -> None:
        self.replies: list[bytes | None] = [OK]
        self.paths: list[str] = []
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.paths.append(head.split(b" ")[1].decode())
            scripted = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            if scripted is None:
                await reader.read()
            else:
                writer.write(scripted)
                await writer.drain()
        writer.close()


@pytest.fixture
async def stub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    stub = Stub()
    server = await asyncio.start_server(stub.answer, "127.0.0.1", 0)
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield stub
    server.close()


class Pauses:
    """Records the pauses between tries instead of waiting."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
async def uk(stub: Stub, pauses: Pauses) -> AsyncIterator[UkProvider]:
    provider = UkProvider(stub.url, timeout_s=5, max_attempts=3, clock=lambda: NOW, sleep=pauses)
    yield provider
    await provider.aclose()


async def test_the_current_half_hour_is_read(stub: Stub, uk: UkProvider) -> None:
    reading = await uk.latest()
    assert (reading.grams_per_kwh, reading.estimated, reading.kind) == (176, False, "live")
    assert reading.time == datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert (reading.zone, reading.provider, reading.measure) == ("GB", "uk", "average")
    assert stub.paths == ["/intensity"]


async def test_a_null_actual_gives_the_forecast_marked_estimated(stub: Stub, uk: UkProvider) -> None:
    stub.replies = [reply(200, payload("intensity_actual_null.json"))]
    reading = await uk.latest()
    assert (reading.grams_per_kwh, reading.estimated, reading.kind) == (181, True, "live")


async def test_the_forecast_is_dated_when_it_was_asked_for_and_skips_nulls(stub: Stub, uk: UkProvider) -> None:
    stub.replies = [reply(200, payload("fw24h.json"))]
    points = await uk.forecast()
    assert stub.paths == ["/intensity/2024-05-01T12:17Z/fw24h"]
    assert [p.grams_per_kwh for p in points] == [181, 190, 204]
    assert {(p.kind, p.issued, p.estimated) for p in points} == {("forecast", NOW, True)}


@pytest.mark.parametrize(
    ("answer", "error", "tries"),
    [
        (reply(400, payload("error_400.json")), Refused, 1),
        (reply(403, b"<html>no</html>", "Content-Type: text/html"), Refused, 1),
        (reply(302, b"", "Location: /elsewhere"), Refused, 1),
        (reply(500, payload("error_500.json")), ProviderFailed, 3),
        (reply(503, b"<html>busy</html>"), ProviderFailed, 3),
        (reply(429, b""), Throttled, 3),
        (reply(200, b"<html>maintenance</html>", "Content-Type: text/html"), Malformed, 3),
        (reply(200, payload("intensity_actual.json")[:60]), Malformed, 3),
        (OK[:-40], Malformed, 3),
        (reply(200, payload("error_500.json")), Malformed, 3),
        (reply(200, b'{"data": []}'), Malformed, 3),
        (reply(200, payload("intensity_actual.json").replace(b"2024-05-01T12:00Z", b"yesterday")), Malformed, 1),
        (reply(200, payload("intensity_actual.json").replace(b"176", b'"176"')), Malformed, 3),
        (reply(200, b" " * (MAX_BODY_BYTES + 1)), Malformed, 3),
        (reply(200, payload("intensity_actual.json").replace(b"176", b"17600")), Implausible, 1),
        (reply(200, payload("intensity_actual.json").replace(b"176", b"-1")), Implausible, 1),
        (b"", Malformed, 3),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
async def test_a_bad_answer_is_a_typed_error(
    stub: Stub, uk: UkProvider, answer: bytes, error: type[GridError], tries: int
) -> None:
    stub.replies = [answer]
    with pytest.raises(GridError) as caught:
        await uk.latest()
    assert type(caught.value) is error
    assert len(stub.paths) == tries


async def test_a_passing_fault_is_hidden_by_trying_again_with_growing_random_pauses(
    stub: Stub, uk: UkProvider, pauses: Pauses
) -> None:
    stub.replies = [reply(502, b""), reply(200, b"{"), OK]
    assert (await uk.latest()).grams_per_kwh == 176
    assert len(pauses.seconds) == 2
    assert all(0 <= pause <= MAX_WAIT_S for pause in pauses.seconds)


async def test_a_short_retry_after_is_honoured(stub: Stub, uk: UkProvider, pauses: Pauses) -> None:
    stub.replies = [reply(429, b"", "Retry-After: 3"), OK]
    assert (await uk.latest()).grams_per_kwh == 176
    assert 3 <= pauses.seconds[0] <= 4


@pytest.mark.parametrize("header", ["Retry-After: 120", "Retry-After: Wed, 01 May 2024 12:19:00 GMT"])
async def test_a_long_retry_after_ends_the_poll_and_is_kept_by_the_ladder(
    stub: Stub, pauses: Pauses, header: str
) -> None:
    now = [NOW]
    uk = UkProvider(stub.url, clock=lambda: now[0], sleep=pauses)
    ladder = Ladder(uk)
    stub.replies = [reply(429, b"", header)]
    outcome = await ladder.read()
    assert outcome.reading is None
    assert isinstance(outcome.refusals[0], Throttled)
    assert (pauses.seconds, len(stub.paths)) == ([], 1)
    stub.replies = [OK]
    now[0] = NOW.replace(minute=18, second=59)
    assert (await ladder.read()).reading is None
    assert len(stub.paths) == 1
    now[0] = NOW.replace(minute=19, second=1)
    assert (await ladder.read()).reading is not None
    await uk.aclose()


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"], ids=["silent", "stalls"])
async def test_a_slow_provider_is_given_up(stub: Stub, pauses: Pauses, answer: bytes | None) -> None:
    stub.replies = [answer]
    if answer is not None:
        stub.answer = _stalling(answer)  # type: ignore[method-assign]
    server = await asyncio.start_server(stub.answer, "127.0.0.1", 0)
    uk = UkProvider(
        f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=0.1, max_attempts=2, sleep=pauses
    )
    with pytest.raises(Unreachable, match=r"0\.1 s"):
        await uk.latest()
    assert len(pauses.seconds) == 1
    await uk.aclose()
    server.close()


async def test_nobody_listening_is_unreachable(stub: Stub, pauses: Pauses) -> None:
    server = await asyncio.start_server(stub.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    uk = UkProvider(f"http://127.0.0.1:{port}", max_attempts=2, sleep=pauses)
    with pytest.raises(Unreachable):
        await uk.latest()
    await uk.aclose()


def _stalling(
    head: bytes,
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
            while True:
                # A byte now and then: each read succeeds, the whole never ends.
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()

    return answer
