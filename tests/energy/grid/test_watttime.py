"""WattTime against a local server that plays its contract."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from energy.grid.http import Patience
from energy.grid.signal import GridError, Implausible, Malformed, NoData, Refused, WrongZone
from energy.grid.watttime import WattTimeProvider
from tests.support.feed_stub import Pauses, Stub, reply

START = datetime(2024, 6, 18, 18, 42, tzinfo=UTC)
PASSWORD, TOKEN = "wt-hunter2-secret", "wt-bearer-secret"
LOGIN = reply(200, {"token": TOKEN})
FORBIDDEN = reply(403, b"<html><title>403 Forbidden</title></html>", "Content-Type: text/html")
PLAN = reply(403, {"error": "Invalid query parameters", "message": "Invalid scope."})


def body(*values: float, **meta: Any) -> dict[str, Any]:
    return {
        "data": [
            {"point_time": f"{START.replace(minute=40) + timedelta(minutes=5 * i):%Y-%m-%dT%H:%M:%S+00:00}", "value": v}
            for i, v in enumerate(values)
        ],
        "meta": {
            "region": "PSCO",
            "signal_type": "co2_aoer",
            "units": "lbs_co2_per_mwh",
            "data_point_period_seconds": 300,
            "generated_at": "2024-06-18T18:40:00+00:00",
            "warnings": [{"type": "EXAMPLE_WARNING", "message": "an example"}],
            **meta,
        },
    }


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def watts(stub: Stub, pauses: Pauses, clock: Clock) -> AsyncIterator[WattTimeProvider]:
    stub.by_path["/login"] = LOGIN
    stub.replies = [reply(200, body(1000))]
    provider = WattTimeProvider("PSCO", "ann", lambda: PASSWORD, "co2_aoer", stub.url, Patience(5, 3, clock, pauses))
    yield provider
    await provider.aclose()


async def test_the_first_forecast_point_is_now_and_pounds_become_grams(stub: Stub, watts: WattTimeProvider) -> None:
    reading = await watts.latest()
    assert reading.grams_per_kwh == pytest.approx(453.59237)
    assert (reading.kind, reading.estimated, reading.measure) == ("live", True, "average")
    assert (reading.zone, reading.provider, reading.time) == ("PSCO", "watttime", START.replace(minute=40))
    assert [path.split("?")[0] for path in stub.paths] == ["/login", "/v3/forecast"]
    assert stub.params() == {"region": "PSCO", "signal_type": "co2_aoer", "horizon_hours": "0"}
    assert stub.header("authorization") == f"Bearer {TOKEN}"
    basic = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
    assert stub.header("authorization", 0) == f"Basic {basic}"


async def test_the_forecast_is_dated_when_it_was_generated(stub: Stub, watts: WattTimeProvider) -> None:
    stub.replies = [reply(200, body(1000, 900, 800))]
    points = await watts.forecast()
    assert [round(p.grams_per_kwh) for p in points] == [454, 408, 363]
    assert {(p.kind, p.issued) for p in points} == {("forecast", START.replace(minute=40))}
    assert stub.params()["horizon_hours"] == "24"


async def test_the_past_day_says_what_was_imputed(stub: Stub, watts: WattTimeProvider) -> None:
    past = body(870, 860)
    past["data"][0]["imputed_data_used"] = True
    stub.replies = [reply(200, past)]
    assert [p.estimated for p in await watts.history()] == [True, False]
    assert stub.paths[-1].startswith("/v3/historical?")
    assert (stub.params()["start"], stub.params()["end"]) == ("2024-06-17T18:42Z", "2024-06-18T18:42Z")


async def test_the_marginal_signal_is_labelled_so(stub: Stub, pauses: Pauses, clock: Clock) -> None:
    stub.by_path["/login"] = LOGIN
    stub.replies = [reply(200, body(1000, signal_type="co2_moer"))]
    marginal = WattTimeProvider("PSCO", "ann", lambda: PASSWORD, "co2_moer", stub.url, Patience(5, 3, clock, pauses))
    reading = await marginal.latest()
    assert (reading.measure, reading.provider) == ("marginal", "watttime_marginal")
    await marginal.aclose()


async def test_one_login_serves_half_an_hour(stub: Stub, watts: WattTimeProvider, clock: Clock) -> None:
    for minutes in (0, 10, 24, 26):
        clock.now = START + timedelta(minutes=minutes)
        await watts.latest()
    assert [path.split("?")[0] for path in stub.paths].count("/login") == 2


async def test_a_token_that_ended_early_is_asked_for_anew_once(stub: Stub, watts: WattTimeProvider) -> None:
    await watts.latest()
    stub.replies = [FORBIDDEN, reply(200, body(1000))]
    assert (await watts.latest()).grams_per_kwh == pytest.approx(453.59237)
    stub.replies = [FORBIDDEN]
    before = len(stub.paths)
    with pytest.raises(Refused):
        await watts.latest()
    assert [path.split("?")[0] for path in stub.paths[before:]] == ["/v3/forecast", "/login", "/v3/forecast"]


@pytest.mark.parametrize(
    ("login", "answer", "error", "said"),
    [
        (FORBIDDEN, b"", Refused, "check grid.username and grid.secret"),
        (reply(200, {"nothing": 1}), b"", Malformed, "/login"),
        (LOGIN, PLAN, Refused, "plan covers PSCO"),
        (LOGIN, reply(404, {"error": "No coverage available"}), NoData, "No coverage"),
        (LOGIN, reply(400, {"error": "bad region"}), Refused, "bad region"),
        (LOGIN, reply(200, body(96, units="percentile")), WrongZone, "'percentile' is no intensity"),
        (LOGIN, reply(200, body(900, region="CAISO_NORTH")), WrongZone, "CAISO_NORTH"),
        (LOGIN, reply(200, body(900, signal_type="co2_moer")), WrongZone, "co2_moer"),
        (LOGIN, reply(200, body()), Malformed, "data"),
        (LOGIN, reply(200, body(90_000)), Implausible, "no grid's intensity"),
    ],
)
async def test_each_way_of_failing_is_a_typed_error(
    stub: Stub, watts: WattTimeProvider, login: bytes, answer: bytes, error: type[GridError], said: str
) -> None:
    stub.by_path["/login"] = login
    stub.replies = [answer]
    with pytest.raises(GridError, match=said) as caught:
        await watts.latest()
    assert type(caught.value) is error
    assert not {PASSWORD, TOKEN} & set(str(caught.value).replace("'", " ").split())


@pytest.mark.skipif("JOULESERVE_TEST_DATA" not in os.environ, reason="needs the recorded bodies")
async def test_the_documented_bodies_are_read(stub: Stub, pauses: Pauses, clock: Clock) -> None:
    bodies = Path(os.environ["JOULESERVE_TEST_DATA"]) / "api" / "watttime"
    stub.by_path["/login"] = reply(200, (bodies / "login.json").read_bytes())

    def marginal(region: str) -> WattTimeProvider:
        return WattTimeProvider(region, "ann", lambda: PASSWORD, "co2_moer", stub.url, Patience(5, 3, clock, pauses))

    stub.replies = [reply(200, (bodies / "forecast.json").read_bytes())]
    assert (await marginal("CAISO_NORTH").latest()).grams_per_kwh == pytest.approx(475.55, abs=0.01)
    stub.replies = [reply(200, (bodies / "historical.json").read_bytes())]
    assert [round(p.grams_per_kwh, 1) for p in await marginal("CAISO_NORTH").history()] == [394.6, 390.1]
    stub.replies = [reply(200, (bodies / "signal_index.json").read_bytes())]
    with pytest.raises(WrongZone, match="percentile"):
        await marginal("PSCO").latest()
    stub.replies = [reply(403, (bodies / "error_invalid_scope.json").read_bytes())]
    with pytest.raises(Refused, match="plan"):
        await marginal("PSCO").latest()
    stub.by_path["/login"] = reply(403, (bodies / "error_403_forbidden.html").read_bytes())
    with pytest.raises(Refused, match="/login"):
        await marginal("PSCO").latest()
