"""The ladder: each rung in its turn, guards on every reading, a memory that survives restarts."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.grid.ladder import Ladder, Limits
from energy.grid.memory import Memory
from energy.grid.signal import (
    FutureDated,
    GridError,
    Intensity,
    Kind,
    Stale,
    Throttled,
    Unreachable,
    plausible,
)
from energy.grid.static import WORLD_MEAN_GRAMS_PER_KWH, StaticProvider

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Feed:
    """A provider whose clock, readings and faults the test sets."""

    name = "feed"
    zone = "Z"

    def __init__(self, kind: Kind = "live") -> None:
        self.clock = NOON
        self.kind = kind
        self.grams: float = 200.0
        self.lag = timedelta()
        self.fault: Exception | None = None
        self.past: tuple[float, ...] = ()
        self.history_fault: Exception | None = None
        self.ahead: tuple[float, ...] = ()
        self.forecasts = 0
        self.forecast_fault: Exception | None = None

    def now(self) -> datetime:
        return self.clock

    async def latest(self) -> Intensity:
        if self.fault is not None:
            raise self.fault
        return Intensity(self.zone, self.name, self.clock - self.lag, plausible(self.grams), self.kind)

    async def history(self) -> tuple[Intensity, ...]:
        if self.history_fault is not None:
            raise self.history_fault
        hours = len(self.past)
        return tuple(
            Intensity(self.zone, self.name, self.clock - HOUR * (hours - i), grams, "live")
            for i, grams in enumerate(self.past)
        )

    async def forecast(self) -> tuple[Intensity, ...]:
        self.forecasts += 1
        if self.forecast_fault is not None:
            raise self.forecast_fault
        return tuple(
            Intensity(self.zone, self.name, self.clock + HOUR * i, g, "forecast", True, self.clock)
            for i, g in enumerate(self.ahead)
        )

    async def aclose(self) -> None:
        pass


async def rung(ladder: Ladder) -> tuple[str, float] | None:
    reading = (await ladder.read()).reading
    return None if reading is None else (reading.kind, reading.grams_per_kwh)


@pytest.mark.parametrize("retry_after_s", [31_536_000.0, 1e30])
async def test_a_provider_that_asks_for_a_year_is_asked_again_after_an_hour(retry_after_s: float) -> None:
    ladder = Ladder(feed := Feed())
    feed.fault = Throttled("busy", retry_after_s)
    assert await rung(ladder) is None
    feed.fault = None
    feed.clock += HOUR - timedelta(seconds=1)
    assert await rung(ladder) is None
    feed.clock += timedelta(seconds=1)
    assert await rung(ladder) == ("live", 200.0)


async def test_a_clock_that_is_put_back_does_not_prolong_what_a_provider_asked_for() -> None:
    ladder = Ladder(feed := Feed())
    feed.fault = Throttled("busy", 600.0)
    await ladder.read()
    feed.fault = None
    feed.clock -= 24 * HOUR
    assert await rung(ladder) == ("live", 200.0)


async def test_the_rungs_are_taken_in_order_and_the_last_is_nothing() -> None:
    feed = Feed()
    ladder = Ladder(feed)
    for week in (3, 2, 1):
        feed.clock = NOON + 30 * HOUR - timedelta(weeks=week)
        feed.grams = 100.0 * week
        await ladder.read()
    feed.clock, feed.grams = NOON, 250
    feed.ahead = tuple(300.0 + i for i in range(24))
    assert await rung(ladder) == ("live", 250)
    feed.fault = Unreachable("down")
    feed.clock = NOON + 2 * HOUR
    assert await rung(ladder) == ("cached", 250)
    feed.clock = NOON + 2.5 * HOUR
    assert await rung(ladder) == ("forecast", 302)
    feed.clock = NOON + 23.9 * HOUR
    assert await rung(ladder) == ("forecast", 323)
    feed.clock = NOON + 30 * HOUR
    assert await rung(ladder) == ("hour_of_week_mean", 200)
    feed.clock = NOON + 31 * HOUR
    assert await rung(ladder) is None


async def test_a_forecast_that_was_issued_too_long_ago_is_left() -> None:
    feed = Feed()
    feed.ahead = tuple([300.0] * 96)
    ladder = Ladder(feed, Limits(forecast_max_age_s=6 * 3600))
    await ladder.read()
    feed.fault = Unreachable("down")
    feed.clock = NOON + 6 * HOUR
    assert await rung(ladder) == ("forecast", 300)
    feed.clock = NOON + 6.1 * HOUR
    assert await rung(ladder) is None


async def test_one_earlier_week_alone_is_no_mean() -> None:
    feed = Feed()
    ladder = Ladder(feed)
    await ladder.read()
    feed.fault = Unreachable("down")
    feed.clock = NOON + timedelta(weeks=1)
    assert await rung(ladder) is None


async def test_what_is_estimated_by_us_says_so() -> None:
    feed = Feed()
    ladder = Ladder(feed)
    for week in (2, 1):
        feed.clock = NOON - timedelta(weeks=week)
        await ladder.read()
    feed.fault, feed.clock = Unreachable("down"), NOON + timedelta(minutes=40)
    reading = (await ladder.read()).reading
    assert reading is not None
    assert (reading.estimated, reading.time, reading.kind) == (True, NOON, "hour_of_week_mean")


@pytest.mark.parametrize(
    ("lag", "error"), [(timedelta(hours=2.1), Stale), (timedelta(minutes=-6), FutureDated)], ids=["stale", "future"]
)
async def test_a_reading_that_is_not_about_now_is_refused(lag: timedelta, error: type[GridError]) -> None:
    feed = Feed()
    feed.lag = lag
    outcome = await Ladder(feed).read()
    assert outcome.reading is None
    assert type(outcome.refusals[0]) is error


async def test_a_small_difference_of_clocks_is_no_fault() -> None:
    feed = Feed()
    feed.lag = timedelta(minutes=-4)
    assert await rung(Ladder(feed)) == ("live", 200)


async def told(ladder: Ladder, feed: Feed, course: list[float]) -> list[tuple[str, float] | None]:
    """What the ladder gives while the feed tells `course`, a reading every five minutes."""
    found = []
    for step, grams in enumerate(course):
        feed.clock, feed.grams = NOON + timedelta(minutes=5 * step), grams
        found.append(await rung(ladder))
    return found


@pytest.mark.parametrize("lie", [2000, 20], ids=["dirtier", "cleaner"])
async def test_a_feed_that_lies_tenfold_for_a_quarter_of_an_hour_moves_nothing(lie: float) -> None:
    feed = Feed()
    feed.past = (190.0,) * 24
    ladder = Ladder(feed)
    found = await told(ladder, feed, [200] * 4 + [lie] * 3 + [200] * 5)
    assert found == [("live", 200)] * 4 + [("cached", 200)] * 3 + [("live", 200)] * 5
    assert ladder.refused == {"Implausible": 3}


@pytest.mark.parametrize("lie", [2000, 20], ids=["dirtier", "cleaner"])
async def test_a_first_reading_that_lies_is_told_by_the_provider_s_own_past(lie: float) -> None:
    feed = Feed()
    feed.past = (210.0,) * 24
    ladder = Ladder(feed)
    found = await told(ladder, feed, [lie] * 3 + [200] * 3)
    assert found == [None] * 3 + [("live", 200)] * 3


async def test_without_a_past_a_lying_start_ends_in_nothing_until_the_truth_has_held() -> None:
    feed = Feed()
    feed.history_fault = Unreachable("down")
    found = await told(Ladder(feed), feed, [2000] * 3 + [200] * 9)
    assert found[:3] == [("live", 1500)] * 3
    assert found[3:9] == [None] * 6
    assert found[9:] == [("live", 200)] * 3


async def test_a_lie_that_comes_and_goes_moves_nothing() -> None:
    feed = Feed()
    feed.past = (200.0,) * 24
    found = await told(Ladder(feed), feed, [200, 2000] * 30)
    assert {grams for _, grams in filter(None, found)} == {200}


async def test_a_leap_that_lasts_is_believed_after_half_an_hour() -> None:
    feed = Feed()
    found = await told(Ladder(feed), feed, [200] * 7 + [900] * 8)
    assert found == [("live", 200)] * 7 + [("cached", 200)] * 6 + [("live", 900)] * 2


async def test_the_provider_s_past_is_asked_for_until_it_was_had_and_fills_the_history() -> None:
    feed = Feed()
    feed.history_fault = Unreachable("down")
    ladder = Ladder(feed)
    await ladder.read()
    assert len(ladder.history()) == 1
    feed.history_fault, feed.past, feed.clock = None, (180.0, 190.0), NOON + HOUR
    await ladder.read()
    assert [(p.time.hour, p.grams_per_kwh) for p in ladder.history()] == [(11, 180), (12, 200), (13, 200)]


def test_a_row_of_the_past_that_is_dated_ahead_pushes_nothing_out() -> None:
    memory = Memory("feed", "Z")
    times = (NOON - 2 * HOUR, NOON + timedelta(days=400), NOON - HOUR)
    memory.learn([Intensity("Z", "feed", time, 200.0, "live") for time in times], 28, NOON)
    assert [reading.time for reading in memory.past()] == [NOON - 2 * HOUR, NOON - HOUR]


async def test_the_outlook_holds_what_is_ahead_as_long_as_it_is_not_too_old() -> None:
    feed = Feed()
    feed.ahead = (300.0, 301.0, 302.0)
    ladder = Ladder(feed)
    assert (ladder.latest(), ladder.forecast()) == (None, ())
    await ladder.read()
    assert ladder.latest() is not None
    assert [p.grams_per_kwh for p in ladder.forecast()] == [300, 301, 302]
    feed.clock = NOON + 1.5 * HOUR
    assert [p.grams_per_kwh for p in ladder.forecast()] == [301, 302]
    feed.clock = NOON + 25 * HOUR
    assert ladder.forecast() == ()


async def test_a_clean_grid_may_triple_by_a_few_grams() -> None:
    feed = Feed()
    ladder = Ladder(feed)
    feed.grams = 20
    await ladder.read()
    feed.clock, feed.grams = NOON + HOUR / 2, 90
    assert await rung(ladder) == ("live", 90)


async def test_a_recording_may_leap_as_it_likes() -> None:
    feed = Feed("replay")
    ladder = Ladder(feed)
    await ladder.read()
    feed.clock, feed.grams = NOON + timedelta(minutes=5), 900
    assert await rung(ladder) == ("replay", 900)


async def test_a_bug_in_a_provider_is_only_one_more_missing_reading() -> None:
    feed = Feed()
    ladder = Ladder(feed)
    await ladder.read()
    feed.fault = ZeroDivisionError("a bug")
    outcome = await ladder.read()
    assert outcome.reading is not None
    assert outcome.reading.kind == "cached"
    assert "ZeroDivisionError" in str(outcome.refusals[0])


async def test_the_forecast_is_asked_for_once_an_hour_and_may_fail() -> None:
    feed = Feed()
    feed.ahead = (300.0,)
    ladder = Ladder(feed)
    for minute in range(0, 120, 10):
        feed.clock = NOON + timedelta(minutes=minute)
        feed.forecast_fault = Unreachable("down") if minute else None
        assert await rung(ladder) == ("live", 200)
    assert feed.forecasts == 2


async def test_a_clock_that_is_put_back_holds_up_neither_the_forecast_nor_a_change_of_the_grid() -> None:
    feed = Feed()
    feed.ahead, feed.past = (300.0,), (190.0,) * 24
    ladder = Ladder(feed)
    await ladder.read()
    feed.grams, feed.clock = 900, NOON + HOUR / 12
    assert await rung(ladder) == ("cached", 200)
    set_back = NOON - timedelta(hours=1)
    found = []
    for minute in range(0, 50, 10):
        feed.clock = set_back + timedelta(minutes=minute)
        found.append(await rung(ladder))
    assert feed.forecasts >= 2
    assert found[-1] == ("live", 900)


async def test_a_restart_during_an_outage_still_has_every_rung(tmp_path: Path) -> None:
    path = tmp_path / "run" / "cache.json"
    feed = Feed()
    ladder = Ladder(feed, cache_path=path)
    for week in (2, 1):
        feed.clock = NOON + 40 * HOUR - timedelta(weeks=week)
        await ladder.read()
    feed.clock, feed.ahead = NOON, (300.0, 301.0, 302.0, 303.0)
    await ladder.read()
    feed.fault = Unreachable("down")
    for hours, expected in ((1, "cached"), (3, "forecast"), (40, "hour_of_week_mean")):
        feed.clock = NOON + hours * HOUR
        found = await rung(Ladder(feed, cache_path=path))
        assert found is not None
        assert found[0] == expected


@pytest.mark.parametrize("content", ["", "{", "[]", '{"provider": "feed", "zone": "Z"}', "\x00\xff"])
async def test_a_damaged_cache_is_an_empty_one(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cache.json"
    path.write_bytes(content.encode("latin-1"))
    assert await rung(Ladder(Feed(), cache_path=path)) == ("live", 200)
    assert json.loads(path.read_text())["zone"] == "Z"


async def test_a_cache_of_another_zone_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    await Ladder(Feed(), cache_path=path).read()
    other = Feed()
    other.zone, other.fault = "Y", Unreachable("down")
    assert await rung(Ladder(other, cache_path=path)) is None


async def test_a_cache_that_cannot_be_written_costs_no_reading(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder belongs")
    assert await rung(Ladder(Feed(), cache_path=tmp_path / "run" / "cache.json")) == ("live", 200)


@given(
    st.lists(
        st.tuples(st.integers(0, 24 * 60), st.one_of(st.none(), st.floats(-100, 5000), st.just(float("nan")))),
        max_size=25,
    )
)
async def test_the_ladder_never_gives_a_number_outside_of_what_it_was_told(
    history: list[tuple[int, float | None]],
) -> None:
    feed = Feed()
    ladder = Ladder(feed)
    told: set[float] = set()
    for minutes, grams in sorted(history, key=lambda row: row[0]):
        feed.clock = NOON + timedelta(minutes=minutes)
        feed.fault = Unreachable("down") if grams is None else None
        feed.grams = 0.0 if grams is None else grams
        reading = (await ladder.read()).reading
        if grams is not None and 0 <= grams <= 3000:
            told.add(min(grams, 1500.0))
        assert reading is None or reading.grams_per_kwh in told


def test_the_memory_forgets_hours_beyond_its_days() -> None:
    memory = Memory("feed", "Z")
    for day in range(60):
        memory.accept(Intensity("Z", "feed", NOON + timedelta(days=day), 100, "live"), keep_days=28)
    assert len(memory.hours) == 29


async def test_the_world_mean_is_marked_as_an_assumption_and_a_given_constant_is_not() -> None:
    assumed = await StaticProvider(clock=lambda: NOON).latest()
    given_ = await StaticProvider(80, "SE", clock=lambda: NOON).latest()
    assert (assumed.grams_per_kwh, assumed.estimated, assumed.zone) == (WORLD_MEAN_GRAMS_PER_KWH, True, "world")
    assert (given_.grams_per_kwh, given_.estimated, given_.zone) == (80, False, "SE")
    assert Intensity.from_dict(given_.to_dict()) == given_
