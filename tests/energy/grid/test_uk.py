"""The UK provider against a local server that replays payloads. What all providers share is in test_http."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from energy.grid.http import Patience
from energy.grid.signal import GridError, Implausible, Malformed
from energy.grid.uk import UkProvider
from tests.support.feed_stub import Pauses, Stub, payload, reply

NOW = datetime(2024, 5, 1, 12, 17, tzinfo=UTC)


@pytest.fixture
async def uk(stub: Stub, pauses: Pauses) -> AsyncIterator[UkProvider]:
    stub.replies = [reply(200, payload("intensity_actual.json"))]
    provider = UkProvider(stub.url, Patience(clock=lambda: NOW, sleep=pauses))
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


async def test_the_past_day_leaves_out_what_can_only_be_a_fault(stub: Stub, uk: UkProvider) -> None:
    def half(time: str, actual: int | None, forecast: int | None) -> dict[str, object]:
        return {"from": time, "to": time, "intensity": {"forecast": forecast, "actual": actual, "index": "low"}}

    rows = [
        half("2024-05-01T11:30Z", None, None),
        half("2024-05-01T11:00Z", 210, 200),
        half("2024-05-01T10:30Z", 99_999, 200),
        half("2024-05-01T10:00Z", None, 190),
    ]
    stub.replies = [reply(200, {"data": rows})]
    points = await uk.history()
    assert stub.paths == ["/intensity/2024-05-01T12:17Z/pt24h"]
    assert [(p.time.hour, p.grams_per_kwh, p.estimated) for p in points] == [(10, 190, True), (11, 210, False)]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ((b"2024-05-01T12:00Z", b"yesterday"), Malformed),
        ((b"176", b'"176"'), Malformed),
        ((b"176", b"17600"), Implausible),
        ((b"176", b"-1"), Implausible),
    ],
)
async def test_a_wrong_field_is_a_typed_error(
    stub: Stub, uk: UkProvider, change: tuple[bytes, bytes], error: type[GridError]
) -> None:
    stub.replies = [reply(200, payload("intensity_actual.json").replace(*change))]
    with pytest.raises(GridError) as caught:
        await uk.latest()
    assert type(caught.value) is error


async def test_a_half_hour_without_any_value_is_malformed(stub: Stub, uk: UkProvider) -> None:
    nothing = {"from": "2024-05-01T12:00Z", "intensity": {"forecast": None, "actual": None}}
    stub.replies = [reply(200, {"data": [nothing]})]
    with pytest.raises(Malformed, match="neither"):
        await uk.latest()
