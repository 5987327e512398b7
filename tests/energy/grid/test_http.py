"""What every provider that asks over HTTP does with a bad line, a bad server and a bad body; and its secrets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from energy.grid.electricity_maps import ElectricityMapsProvider
from energy.grid.http import MAX_BODY_BYTES, MAX_WAIT_S, Patience
from energy.grid.ladder import Ladder
from energy.grid.signal import (
    FutureDated,
    GridError,
    GridProvider,
    Malformed,
    ProviderFailed,
    Refused,
    Stale,
    Throttled,
    Unreachable,
)
from energy.grid.uk import UkProvider
from energy.grid.watttime import WattTimeProvider
from tests.support.feed_stub import Pauses, Stub, dripping, payload, reply

NOW = datetime(2024, 5, 1, 12, 17, tzinfo=UTC)
SECRET = "s3cr3t-0f-the-f33d"
Make = Callable[[str, Patience], GridProvider]
MAKERS: dict[str, Make] = {
    "uk": UkProvider,
    "electricity_maps": lambda url, patience: ElectricityMapsProvider("DE", lambda: SECRET, url, patience),
    "watttime": lambda url, patience: WattTimeProvider("PSCO", "ann", lambda: SECRET, "co2_aoer", url, patience),
}


def good(name: str, time: str = "2024-05-01T12:00:00Z") -> bytes:
    """The provider's answer to `latest`: 176 g."""
    if name == "uk":
        return reply(200, payload("intensity_actual.json").replace(b"2024-05-01T12:00Z", time.encode()))
    if name == "electricity_maps":
        return reply(200, {"zone": "DE", "carbonIntensity": 176, "datetime": time})
    meta = {"region": "PSCO", "signal_type": "co2_aoer", "units": "lbs_co2_per_mwh"}
    return reply(200, {"data": [{"point_time": time, "value": 388.0136}], "meta": meta})


@pytest.fixture(params=MAKERS)
def name(request: pytest.FixtureRequest, stub: Stub) -> str:
    stub.by_path["/login"] = reply(200, {"token": f"{SECRET}-token"})
    chosen: str = request.param
    stub.replies = [good(chosen)]
    return chosen


def provider(name: str, stub: Stub, pauses: Pauses, clock: Callable[[], datetime] = lambda: NOW) -> GridProvider:
    return MAKERS[name](stub.url, Patience(timeout_s=5, max_attempts=3, clock=clock, sleep=pauses))


def asked(stub: Stub) -> int:
    """Requests but logins."""
    return sum(not path.startswith("/login") for path in stub.paths)


@pytest.mark.parametrize(
    ("answer", "error", "tries"),
    [
        (reply(400, b'{"error": "x"}'), Refused, 1),
        (reply(302, b"", "Location: /elsewhere"), Refused, 1),
        (reply(500, payload("error_500.json")), ProviderFailed, 3),
        (reply(503, b"<html>busy</html>"), ProviderFailed, 3),
        (reply(429, b""), Throttled, 3),
        (reply(200, b"<html>maintenance</html>", "Content-Type: text/html"), Malformed, 3),
        (reply(200, b'{"zone": "DE", "carbonInt'), Malformed, 3),
        (reply(200, b"[]"), Malformed, 3),
        (reply(200, b'{"data": []}'), GridError, 3),
        (reply(200, b" " * (MAX_BODY_BYTES + 1)), Malformed, 3),
        (b"", Malformed, 3),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
async def test_a_bad_answer_is_a_typed_error(
    name: str, stub: Stub, pauses: Pauses, answer: bytes, error: type[GridError], tries: int
) -> None:
    stub.replies = [answer]
    feed = provider(name, stub, pauses)
    with pytest.raises(GridError) as caught:
        await feed.latest()
    assert isinstance(caught.value, error)
    if error is not GridError:
        assert asked(stub) == tries
    await feed.aclose()


async def test_a_passing_fault_is_hidden_by_trying_again_with_growing_random_pauses(
    name: str, stub: Stub, pauses: Pauses
) -> None:
    stub.replies = [reply(502, b""), reply(200, b"{"), good(name)]
    feed = provider(name, stub, pauses)
    assert (await feed.latest()).grams_per_kwh == pytest.approx(176, abs=0.01)
    assert len(pauses.seconds) == 2
    assert all(0 <= pause <= MAX_WAIT_S for pause in pauses.seconds)
    await feed.aclose()


async def test_a_short_retry_after_is_honoured(name: str, stub: Stub, pauses: Pauses) -> None:
    stub.replies = [reply(429, b"", "Retry-After: 3"), good(name)]
    feed = provider(name, stub, pauses)
    await feed.latest()
    assert 3 <= pauses.seconds[0] <= 4
    await feed.aclose()


@pytest.mark.parametrize("header", ["Retry-After: 120", "Retry-After: Wed, 01 May 2024 12:19:00 GMT"])
async def test_a_long_retry_after_ends_the_poll_and_is_kept_by_the_ladder(
    name: str, stub: Stub, pauses: Pauses, header: str
) -> None:
    now = [NOW]
    feed = provider(name, stub, pauses, lambda: now[0])
    ladder = Ladder(feed)
    stub.replies = [reply(429, b"", header)]
    outcome = await ladder.read()
    assert outcome.reading is None
    assert isinstance(outcome.refusals[0], Throttled)
    assert (pauses.seconds, asked(stub)) == ([], 1)
    stub.replies = [good(name)]
    now[0] = NOW.replace(minute=18, second=59)
    assert (await ladder.read()).reading is None
    assert asked(stub) == 1
    now[0] = NOW.replace(minute=19, second=1)
    assert (await ladder.read()).reading is not None
    await feed.aclose()


@pytest.mark.parametrize(
    ("time", "error"), [("2024-05-01T09:00:00Z", Stale), ("2024-05-01T12:30:00Z", FutureDated)], ids=["stale", "future"]
)
async def test_a_reading_that_is_not_about_now_is_refused_by_the_ladder(
    name: str, stub: Stub, pauses: Pauses, time: str, error: type[GridError]
) -> None:
    stub.replies = [good(name, time)]
    feed = provider(name, stub, pauses)
    outcome = await Ladder(feed).read()
    assert outcome.reading is None
    assert type(outcome.refusals[0]) is error
    await feed.aclose()


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"], ids=["silent", "drips"])
async def test_a_slow_provider_is_given_up(stub: Stub, pauses: Pauses, answer: bytes | None) -> None:
    stub.replies = [answer]
    answering = stub.answer if answer is None else dripping(answer)
    server = await asyncio.start_server(answering, "127.0.0.1", 0)  # type: ignore[arg-type]
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    uk = UkProvider(url, Patience(timeout_s=0.1, max_attempts=2, sleep=pauses))
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
    uk = UkProvider(f"http://127.0.0.1:{port}", Patience(max_attempts=2, sleep=pauses))
    with pytest.raises(Unreachable):
        await uk.latest()
    await uk.aclose()


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
async def test_no_secret_is_told_or_logged_even_if_the_provider_repeats_it(
    name: str,
    stub: Stub,
    pauses: Pauses,
    status: int,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if name == "uk":
        pytest.skip("has no secret")
    caplog.set_level(logging.DEBUG)
    structlog.reset_defaults()
    feed = provider(name, stub, pauses)
    ladder = Ladder(feed)
    await ladder.read()
    stub.replies = [reply(status, f"your key {SECRET} and token {SECRET}-token are no good".encode())]
    outcome = await ladder.read()
    if name == "watttime":
        stub.by_path["/login"] = reply(status, f"{SECRET} is wrong".encode())
        feed._token = None  # type: ignore[attr-defined]
        await ladder.read()
    said = "".join([*map(str, outcome.refusals), caplog.text, *capfd.readouterr(), repr(feed)])
    assert outcome.refusals
    assert SECRET not in said
    await feed.aclose()


def quoting(name: str) -> list[bytes]:
    """Answers that repeat the key where the provider's reader may quote them."""
    sound = json.loads(good(name).partition(b"\r\n\r\n")[2])
    bodies: list[dict[str, Any]] = []
    if name == "electricity_maps":
        bodies = [{**sound, field: SECRET} for field in ("zone", "datetime", "emissionFactorType", "error")]
    else:
        point = {"point_time": f"{SECRET}-token", "value": 1}
        bodies = [{**sound, "meta": {**sound["meta"], field: SECRET}} for field in sound["meta"]]
        bodies.append({**sound, "data": [point]})
    return [f"{SECRET} is no HTTP\r\n\r\n".encode(), *(reply(200, body) for body in bodies)]


async def test_no_answer_however_odd_brings_a_secret_into_an_error(name: str, stub: Stub, pauses: Pauses) -> None:
    if name == "uk":
        pytest.skip("has no secret")
    feed = provider(name, stub, pauses)
    for answer in quoting(name):
        stub.replies = [answer]
        with pytest.raises(GridError) as caught:
            await feed.latest()
        assert SECRET not in str(caught.value)
    await feed.aclose()


@pytest.mark.parametrize("key", [f"{SECRET}\nmore", f"{SECRET} ", f"{SECRET}\n", f"{SECRET}-\u00e9"])
async def test_a_key_that_no_header_can_carry_is_refused_and_not_told(stub: Stub, pauses: Pauses, key: str) -> None:
    patience = Patience(clock=lambda: NOW, sleep=pauses)
    maps = ElectricityMapsProvider("DE", lambda: key, stub.url, patience)
    watts = WattTimeProvider("PSCO", "ann", lambda: SECRET, "co2_aoer", stub.url, patience)
    stub.by_path["/login"] = reply(200, {"token": key})
    for feed in (maps, watts):
        with pytest.raises(Refused, match="no header can carry") as caught:
            await feed.latest()
        assert SECRET not in str(caught.value)
        await feed.aclose()
    assert pauses.seconds == []


async def test_no_part_of_a_long_key_is_told_either(stub: Stub, pauses: Pauses) -> None:
    key = SECRET + "x" * 300
    maps = ElectricityMapsProvider("DE", lambda: key, stub.url, Patience(clock=lambda: NOW, sleep=pauses))
    for field in ("zone", "datetime", "emissionFactorType", "error"):
        stub.replies = [reply(200, {"zone": "DE", "carbonIntensity": 1, "datetime": NOW.isoformat(), field: key})]
        with pytest.raises(GridError) as caught:
            await maps.latest()
        assert SECRET not in str(caught.value)
    await maps.aclose()


async def test_a_key_that_reads_like_a_figure_blots_out_none(stub: Stub, pauses: Pauses) -> None:
    stub.replies = [good("electricity_maps")]
    maps = ElectricityMapsProvider("DE", lambda: "176", stub.url, Patience(clock=lambda: NOW, sleep=pauses))
    assert (await maps.latest()).grams_per_kwh == 176
    await maps.aclose()


async def test_a_login_that_gives_the_same_token_again_is_taken(stub: Stub, pauses: Pauses) -> None:
    now = [NOW]
    stub.by_path["/login"], stub.replies = reply(200, {"token": f"{SECRET}-token"}), [good("watttime")]
    feed = provider("watttime", stub, pauses, lambda: now[0])
    for hour in (12, 13):
        now[0] = NOW.replace(hour=hour)
        await feed.latest()
        assert stub.header("authorization") == f"Bearer {SECRET}-token"
    assert len(stub.paths) - asked(stub) == 2
    await feed.aclose()


async def test_an_address_that_is_none_is_refused_with_its_setting(pauses: Pauses) -> None:
    uk = UkProvider("http://127.0.0.1:port", Patience(sleep=pauses))
    with pytest.raises(Refused, match=r"grid\.base_url"):
        await uk.latest()
    await uk.aclose()
