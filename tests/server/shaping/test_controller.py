"""The controller: polls, turns the dial, records it, pushes it, and outlives every failure."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from energy.grid.ladder import Ladder
from energy.grid.replay import Recording, ReplayProvider
from energy.grid.signal import Intensity, Unreachable
from models.manifest import OperatingPoint
from server.node.figures import Figures
from server.node.grid_state import parse_grid_state
from server.shaping.controller import KEPT_DECISIONS, Ask, ShapingController
from server.shaping.policy import DialState
from server.shaping_settings import ShapingSettings

MIDNIGHT = datetime(2024, 5, 1, tzinfo=UTC)


def point(name: str, relative_accuracy: float, cost: float) -> OperatingPoint:
    return OperatingPoint(
        name=name,
        variant=name,
        accuracy=0.9,
        accuracy_lower=0.8,
        relative_accuracy=relative_accuracy,
        cpu_seconds_per_1k=cost,
    )


POINTS = (point("full", 1.0, 3.0), point("lite", 0.97, 1.5))


def settings(**changes: Any) -> ShapingSettings:
    base = {"policy": "threshold", "poll_period_s": 1, "min_dwell_s": 4}
    return ShapingSettings.model_validate(base | changes)


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now_s = 5000.0

    def __call__(self) -> float:
        return self.now_s


class Feed:
    """A provider whose next reading the test sets; None raises."""

    name = "feed"
    zone = "Z"

    def __init__(self, clock: Clock) -> None:
        self.grams: float | None = 200.0
        self.looks = 0
        self.closed = False
        self.lag: timedelta | None = None
        """How late a live feed's readings come; None: a replay's, of this moment."""
        self.past: list[tuple[datetime, float]] = []
        self._clock = clock

    def now(self) -> datetime:
        return MIDNIGHT + timedelta(seconds=self._clock())

    async def latest(self) -> Intensity:
        self.looks += 1
        if self.grams is None:
            raise Unreachable("the feed is down")
        if self.lag is not None:
            return Intensity(self.zone, self.name, self.now() - self.lag, self.grams, "live")
        return Intensity(self.zone, self.name, self.now(), self.grams, "replay")

    async def history(self) -> tuple[Intensity, ...]:
        return tuple(Intensity(self.zone, self.name, time, grams, "live") for time, grams in self.past)

    async def forecast(self) -> tuple[Intensity, ...]:
        return ()

    async def aclose(self) -> None:
        self.closed = True


class Bench:
    """A controller on a hand-turned clock, with what it pushed."""

    def __init__(self, folder: Path, chosen: ShapingSettings, ask: Ask | None = None) -> None:
        self.clock = Clock()
        self.feed = Feed(self.clock)
        self.pushed: list[DialState] = []
        self.failures = 0
        self.grid_file = folder / "run" / "grid.json"
        self.state_file = folder / "policy.json"
        self.controller = ShapingController(
            Ladder(self.feed),
            POINTS,
            chosen,
            self.grid_file,
            self.push,
            clock=self.clock,
            uniform=lambda: 0.5,
            ask=ask,
            state_file=self.state_file,
        )

    async def push(self, dial: DialState) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("serve is busy")
        self.pushed.append(dial)

    async def after(self, seconds: float, grams: float | None) -> str:
        """Let time pass, set the feed, take one step; the standard class's point."""
        self.clock.now_s += seconds
        self.feed.grams = grams
        await self.controller.step()
        return self.controller.dial.point_by_class["standard"]

    def learned(self) -> dict[str, Any]:
        """What a restart would find."""
        learned: dict[str, Any] = json.loads(self.state_file.read_bytes())
        return learned

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.grid_file.read_bytes())
        return report


async def test_the_first_look_at_a_dirty_grid_turns_the_dial(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings())
    assert await bench.after(0, 412) == "lite"
    assert bench.pushed[-1].answers("standard") == ("lite", "grid-dirty:412>350")
    assert bench.pushed[-1].answers("strict") == ("full", "strict")


async def test_it_returns_after_the_dwell_and_counts_both_switches(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings())
    path = [await bench.after(1, grams) for grams in (200, 412, 200, 200, 200, 200)]
    assert path == ["full", "lite", "lite", "lite", "lite", "full"]
    assert bench.controller.switches_total == 2


async def test_the_grid_is_looked_at_once_a_period_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings(poll_period_s=10))
    for _ in range(21):
        await bench.after(1, 200)
    assert bench.feed.looks == 3


async def test_looks_are_a_tenth_of_the_period_early_or_late_by_chance(tmp_path: Path) -> None:
    for chance, soonest_s in ((0.0, 90), (0.999999, 110)):
        bench = Bench(tmp_path, settings(poll_period_s=100))
        bench.controller._uniform = lambda chance=chance: chance
        for after_s, looks in ((0, 1), (soonest_s - 0.1, 1), (0.2, 2)):
            await bench.after(after_s, 200)
            assert bench.feed.looks == looks


async def test_a_dial_is_pushed_when_it_changes_and_not_at_every_look(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings())
    for grams in (200, 210, 220, 412, 430, 440):
        await bench.after(1, grams)
    assert [d.point_by_class["standard"] for d in bench.pushed] == ["full", "lite"]
    assert bench.pushed[0].version < bench.pushed[1].version


async def test_a_push_that_fails_is_made_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings())
    bench.failures = 1
    await bench.after(1, 412)
    assert bench.pushed == []
    await bench.after(0.1, 412)
    assert bench.pushed == [bench.controller.dial]


async def test_a_dead_feed_leads_back_to_full_quality_in_the_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings(poll_period_s=600, min_dwell_s=900))
    assert await bench.after(0, 412) == "lite"
    assert await bench.after(3600, None) == "lite"
    assert bench.report()["kind"] == "cached"
    assert await bench.after(3700, None) == "full"
    report = bench.report()
    assert (report["grams_per_kwh"], report["kind"], report["reason"]) == (None, None, "grid-unknown")


async def test_the_grid_file_says_what_was_read_and_decided(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings())
    await bench.after(1, 412)
    report = bench.report()
    assert report["time"] == "2024-05-01T01:23:21Z"
    assert bench.grid_file.stat().st_mtime == pytest.approx(report["written_s"], abs=60)
    assert {k: v for k, v in report.items() if k not in ("time", "dial_version", "changes", "written_s")} == {
        "grams_per_kwh": 412,
        "expected_grams_per_kwh": None,
        "zone": "Z",
        "provider": "feed",
        "kind": "replay",
        "estimated": False,
        "age_s": 0,
        "dial_point": "lite",
        "dial_level": 1.0,
        "policy": "threshold",
        "reason": "grid-dirty:412>350",
        "switches_total": 1,
        "measure": "average",
        "refused": {},
        "budget": None,
    }


async def test_a_late_reading_is_brought_to_now_by_the_days_before_and_said_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings())
    bench.feed.lag = timedelta(hours=2)
    now = bench.feed.now() + timedelta(seconds=1)
    # The hour of now was 200 dirtier than that of two hours ago, on each of the past three days.
    bench.feed.past = [(now - timedelta(days=day), 400.0) for day in (1, 2, 3)]
    bench.feed.past += [(now - timedelta(days=day, hours=2), 200.0) for day in (1, 2, 3)]
    assert await bench.after(1, 200) == "lite"
    report = bench.report()
    assert (report["grams_per_kwh"], report["expected_grams_per_kwh"], report["age_s"]) == (200, 400, 7200)
    assert report["reason"] == "grid-dirty:400>350"


async def test_a_reading_a_little_ahead_of_the_clock_is_shown_as_any_other(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings())
    bench.feed.lag = timedelta(seconds=-60)
    assert await bench.after(1, 412) == "lite"
    shown = parse_grid_state(bench.grid_file.read_bytes(), time.time())
    assert (shown.grams_per_kwh, shown.age_s, shown.dial_point) == (412, 0, "lite")


async def test_the_grid_file_tells_of_the_last_changes_of_mind_and_why(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings(min_dwell_s=0))
    for grams in (200, 210, 412, 415, 200):  # within a side nothing changes
        await bench.after(1, grams)
    changes = bench.report()["changes"]
    assert [(one["point"], one["reason"], one["grams_per_kwh"]) for one in changes] == [
        ("full", "grid-clean:200<300", 200),
        ("lite", "grid-dirty:412>350", 412),
        ("full", "grid-clean:200<300", 200),
    ]
    for _ in range(KEPT_DECISIONS):
        await bench.after(1, 412)
        await bench.after(1, 200)
    assert len(bench.report()["changes"]) == KEPT_DECISIONS


async def test_new_settings_decide_anew_without_another_look(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings(poll_period_s=600))
    assert await bench.after(0, 320) == "full"
    bench.controller.retune(settings(poll_period_s=600, dirty_above_grams_per_kwh=310))
    assert await bench.after(1, 320) == "lite"
    bench.controller.retune(settings(poll_period_s=600, policy="off"))
    assert await bench.after(1, 320) == "full"
    assert bench.feed.looks == 1


async def test_a_shorter_period_is_taken_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings(poll_period_s=600))
    await bench.after(0, 200)
    bench.controller.retune(settings(poll_period_s=2))
    assert await bench.after(3, 412) == "lite"


async def test_the_points_of_a_new_version_are_taken(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings())
    assert await bench.after(0, 412) == "lite"
    bench.controller.serve_points((point("big", 1.0, 3.0), point("small", 0.96, 1.0)))
    assert await bench.after(0.1, 412) == "small"


async def test_an_unwritable_grid_file_does_not_stop_the_dial(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder belongs")
    bench = Bench(tmp_path, settings())
    assert await bench.after(0, 412) == "lite"
    assert bench.pushed


async def test_a_controller_started_later_counts_on_from_a_higher_version(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings())
    await bench.after(0, 412)
    assert bench.pushed[0].version > DialState.initial(POINTS, settings()).version


async def test_the_loop_outlives_failures_and_lets_the_provider_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, settings(poll_period_s=0.1))
    bench.feed.grams = 412
    turns = 0
    whole_step = bench.controller.step

    async def failing_step() -> None:
        nonlocal turns
        turns += 1
        bench.clock.now_s += 1
        if turns == 1:
            raise RuntimeError("a bug")
        await whole_step()
        if turns == 4:
            raise asyncio.CancelledError

    monkeypatch.setattr(bench.controller, "step", failing_step)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(bench.controller.run(), 30)
    assert bench.pushed[0].point_by_class["standard"] == "lite"
    assert bench.feed.closed


async def test_retuning_wakes_a_loop_that_waits_for_its_next_look(tmp_path: Path) -> None:
    bench = Bench(tmp_path, settings(poll_period_s=3600))
    bench.feed.grams = 320
    task = asyncio.create_task(bench.controller.run())
    await _until(lambda: bool(bench.pushed))
    bench.controller.retune(settings(poll_period_s=3600, dirty_above_grams_per_kwh=310))
    await _until(lambda: bench.pushed[-1].point_by_class["standard"] == "lite")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_replayed_day_moves_to_the_smaller_point_within_two_periods_of_its_dirty_hours(
    tmp_path: Path,
) -> None:
    clock = Clock()
    hours = tuple(MIDNIGHT + timedelta(hours=h) for h in range(24))
    grams = tuple(450.0 if 8 <= h < 14 else 200.0 for h in range(24))
    recording = Recording(hours, grams, timedelta(hours=1))
    provider = ReplayProvider(recording, speed=1440, clock=clock)
    seen: list[tuple[float, str]] = []

    async def push(dial: DialState) -> None:
        seen.append((clock.now_s - 5000.0, dial.point_by_class["standard"]))

    controller = ShapingController(Ladder(provider), POINTS, settings(), tmp_path / "grid.json", push, clock=clock)
    for _ in range(590):
        await controller.step()
        clock.now_s += 0.1
    moves = [(at, name) for (at, name), (_, was) in zip(seen[1:], seen, strict=False) if name != was]
    # A recorded hour lasts 2.5 s at this speed: dirty from 20 s to 35 s.
    assert [name for _, name in moves] == ["lite", "full"]
    assert 20 <= moves[0][0] <= 22
    assert 35 <= moves[1][0] <= 37


def asking(told: list[tuple[int, float]]) -> Ask:
    """Figures with these standard texts and joules, one pair a look; None for the node process when there are no
    more. Other texts come as well, at no steady rate."""
    rest = iter(told)

    async def ask() -> Figures | None:
        one = next(rest, None)
        return None if one is None else Figures(None, None, one[0] ** 2, 0.0, one[1], standard_texts=one[0])

    return ask


async def test_counts_from_before_the_first_request_do_not_spoil_the_usual_rate(tmp_path: Path) -> None:
    told = [(0, 0.0), (0, 0.0)] + [(18_000 * n, 0.0) for n in range(1, 97)]
    bench = Bench(tmp_path, settings(policy="percentile", poll_period_s=1800), asking(told))
    for hour in range(len(told)):
        await bench.after(1800, 200 + hour % 7)
    ranked = bench.learned()["percentile"]
    assert ranked["usual_rate"] == pytest.approx(10)
    assert 47 <= ranked["trail"]["count"] <= 50
    assert bench.report()["reason"].startswith("rank-")


async def test_a_ledger_that_lost_its_last_joule_costs_the_budget_nothing(tmp_path: Path) -> None:
    chosen = settings(policy="budget", budget_amount=300, poll_period_s=300)
    bench = Bench(tmp_path, chosen, asking([(0, 36e6), (0, 37.8e6), (0, 37.8e6 - 1), (0, 39.6e6 - 1)]))
    spent = []
    for _ in range(4):
        await bench.after(300, 200)
        spent.append(bench.learned()["budget"]["spent"])
    assert spent == pytest.approx([0, 100, 100, 200])


async def test_coming_back_to_the_budget_books_no_more_than_its_period(tmp_path: Path) -> None:
    kwh = 3.6e6
    budget = settings(policy="budget", budget_amount=300, poll_period_s=3600)
    bench = Bench(tmp_path, budget, asking([(0, hour * kwh / 24) for hour in range(24 * 4)]))
    spent = []
    for hour in range(24 * 4):
        if hour in (12, 84):
            bench.controller.retune(budget if hour == 84 else settings(poll_period_s=3600))
        await bench.after(3600, 240)
        spent.append(bench.learned()["budget"]["spent"])
    assert max(later - earlier for earlier, later in pairwise(spent)) == pytest.approx(10)
    assert max(spent) <= 240


async def test_a_restart_goes_on_from_what_was_learned(tmp_path: Path) -> None:
    chosen = settings(policy="percentile", poll_period_s=3600)
    first = Bench(tmp_path, chosen, asking([(3600 * n, 1e6 * n) for n in range(20)]))
    for hour in range(20):
        await first.after(3600, 200 + hour)
    before = first.learned()
    assert before["percentile"]["trail"]["count"] >= 12
    second = Bench(tmp_path, chosen, asking([(3600 * 20, 20e6)]))
    second.clock.now_s = first.clock.now_s
    await second.after(60, 300)
    after = second.learned()
    assert after["percentile"]["trail"]["count"] - before["percentile"]["trail"]["count"] in (0, 1)
    assert after["percentile"]["usual_rate"] == before["percentile"]["usual_rate"]
    assert after["budget"]["spent"] == pytest.approx(before["budget"]["spent"] + 1 / 3.6 * 300)
    assert second.report()["reason"].startswith("rank-")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"percentile": {}, "budget": {}}', b'{"percentile": 1}', b"\xff"]
)
async def test_a_damaged_memory_is_ignored_and_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "policy.json").write_bytes(content)
    bench = Bench(tmp_path, settings())
    assert await bench.after(0, 412) == "lite"
    assert bench.learned()["percentile"]["trail"]["count"] == 1


async def _until(true: Any) -> None:
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")
