"""Electricity Maps against a local server that plays its contract."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from energy.grid.electricity_maps import ElectricityMapsProvider
from energy.grid.http import Patience
from energy.grid.signal import GridError, Implausible, Malformed, NoData, Refused, WrongZone
from tests.support.feed_stub import Pauses, Stub, reply

NOW = datetime(2024, 3, 6, 19, 20, tzinfo=UTC)
TOKEN = "em-Yt3kq0secret"
LATEST: dict[str, Any] = {
    "zone": "DE",
    "carbonIntensity": 416.5,
    "datetime": "2024-03-06T19:00:00.000Z",
    "updatedAt": "2024-03-06T18:48:27.926Z",
    "emissionFactorType": "lifecycle",
    "isEstimated": True,
    "estimationMethod": "TIME_SLICER_AVERAGE",
    "temporalGranularity": "hourly",
}


@pytest.fixture
async def maps(stub: Stub, pauses: Pauses) -> AsyncIterator[ElectricityMapsProvider]:
    stub.replies = [reply(200, LATEST)]
    provider = ElectricityMapsProvider("DE", lambda: TOKEN, stub.url, Patience(clock=lambda: NOW, sleep=pauses))
    yield provider
    await provider.aclose()


async def test_the_newest_hour_is_read_and_an_estimate_says_so(stub: Stub, maps: ElectricityMapsProvider) -> None:
    reading = await maps.latest()
    assert (reading.grams_per_kwh, reading.kind, reading.estimated) == (416.5, "live", True)
    assert (reading.zone, reading.provider, reading.measure) == ("DE", "electricity_maps", "average")
    assert reading.time == NOW.replace(minute=0)
    assert stub.paths[0].startswith("/carbon-intensity/latest?")
    assert stub.params() == {"zone": "DE", "emissionFactorType": "lifecycle"}
    assert stub.header("auth-token") == TOKEN


async def test_the_past_day_is_sorted_and_leaves_out_hours_without_a_value(
    stub: Stub, maps: ElectricityMapsProvider
) -> None:
    def hour(time: str, grams: float | None) -> dict[str, Any]:
        return {**LATEST, "datetime": f"2024-03-06T{time}:00:00.000Z", "carbonIntensity": grams}

    stub.replies = [reply(200, {"zone": "DE", "history": [hour("17", 410), hour("16", None), hour("15", 400)]})]
    assert [(p.time.hour, p.grams_per_kwh) for p in await maps.history()] == [(15, 400), (17, 410)]


async def test_the_forecast_is_dated_when_it_was_updated(stub: Stub, maps: ElectricityMapsProvider) -> None:
    ahead = [
        {"carbonIntensity": 326, "datetime": "2024-03-06T20:00:00.000Z"},
        {"carbonIntensity": 297, "datetime": "2024-03-06T21:00:00.000Z"},
    ]
    stub.replies = [reply(200, {"zone": "DE", "forecast": ahead, "updatedAt": "2024-03-06T19:05:00.000Z"})]
    points = await maps.forecast()
    assert [p.grams_per_kwh for p in points] == [326, 297]
    assert {(p.kind, p.issued) for p in points} == {("forecast", NOW.replace(minute=5))}


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (reply(401, {"error": "Invalid auth-token"}), Refused, "check grid.secret"),
        (reply(401, {"error": "Request unauthorized for zoneKey=DE", "message": "no"}), Refused, "plan covers DE"),
        (reply(403, b"<html>no</html>", "Content-Type: text/html"), Refused, "403"),
        (reply(404, {"error": 'No recent data for zone "DE"'}), NoData, "No recent data"),
        (reply(200, {"error": 'No recent data for zone "DE"'}), NoData, "No recent data"),
        (reply(200, {**LATEST, "carbonIntensity": None}), NoData, "no value"),
        (reply(200, {**LATEST, "zone": "FR"}), WrongZone, "answered for 'FR'"),
        (reply(200, {**LATEST, "emissionFactorType": "direct"}), WrongZone, "direct"),
        (reply(200, {**LATEST, "carbonIntensity": "416"}), Malformed, "carbonIntensity"),
        (reply(200, {**LATEST, "datetime": "today"}), Malformed, "no time"),
        (reply(200, {**LATEST, "carbonIntensity": 41_650}), Implausible, "no grid's intensity"),
        (reply(200, {**LATEST, "carbonIntensity": -4}), Implausible, "no grid's intensity"),
    ],
)
async def test_each_way_of_failing_is_a_typed_error(
    stub: Stub, maps: ElectricityMapsProvider, answer: bytes, error: type[GridError], said: str
) -> None:
    stub.replies = [answer]
    with pytest.raises(GridError, match=said) as caught:
        await maps.latest()
    assert type(caught.value) is error
    assert TOKEN not in str(caught.value)


async def test_a_token_file_that_changed_is_followed(stub: Stub, pauses: Pauses) -> None:
    tokens = iter(["first", "second"])
    maps = ElectricityMapsProvider("DE", lambda: next(tokens), stub.url, Patience(clock=lambda: NOW, sleep=pauses))
    stub.replies = [reply(200, LATEST)]
    for token in ("first", "second"):
        await maps.latest()
        assert stub.header("auth-token") == token
    await maps.aclose()


@pytest.mark.skipif("JOULESERVE_TEST_DATA" not in os.environ, reason="needs the recorded bodies")
async def test_the_recorded_bodies_are_read(stub: Stub, pauses: Pauses) -> None:
    bodies = Path(os.environ["JOULESERVE_TEST_DATA"]) / "api" / "electricity_maps"

    def recorded(name: str) -> bytes:
        return reply(200, (bodies / f"carbon_intensity_{name}.json").read_bytes())

    def provider(zone: str) -> ElectricityMapsProvider:
        return ElectricityMapsProvider(zone, lambda: TOKEN, stub.url, Patience(clock=lambda: NOW, sleep=pauses))

    stub.replies = [recorded("latest")]
    assert (await provider("US-CAR-DUK").latest()).grams_per_kwh == 216
    stub.replies = [recorded("history")]
    past = await provider("DE").history()
    assert (len(past), past[0].grams_per_kwh) == (24, 599)
    assert past[-1].time - past[0].time == timedelta(hours=23)
    stub.replies = [recorded("forecast")]
    assert [p.grams_per_kwh for p in await provider("DK-DK2").forecast()] == [326, 297, 194]
    for name, status in (("401_invalid_token", 401), ("401_not_in_plan", 401), ("404_no_recent_data", 404)):
        stub.replies = [reply(status, json.loads((bodies / f"error_{name}.json").read_bytes()))]
        with pytest.raises((Refused, NoData)):
            await provider("DE").latest()
