"""The policy: classes, floors, hysteresis, dwell, and the reasons it gives."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.grid.signal import Intensity, Kind
from models.manifest import OperatingPoint
from server.shaping.policy import Decision, DialState, PolicyState, code, decide
from server.shaping_settings import ShapingSettings

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def point(name: str, relative_accuracy: float, cost: float) -> OperatingPoint:
    return OperatingPoint(
        name=name,
        variant=name,
        accuracy=min(1.0, relative_accuracy * 0.9),
        accuracy_lower=0.5,
        relative_accuracy=relative_accuracy,
        cpu_seconds_per_1k=cost,
    )


POINTS = (point("full", 0.999, 3.0), point("lite", 0.97, 1.5), point("nano", 0.92, 0.7))


def grid(grams_per_kwh: float, kind: Kind = "live", estimated: bool = False) -> Intensity:
    return Intensity("Z", "test", NOON, grams_per_kwh, kind, estimated)


def settings(**changes: Any) -> ShapingSettings:
    base = {
        "policy": "threshold",
        "dirty_above_grams_per_kwh": 350,
        "clean_below_grams_per_kwh": 300,
        "min_dwell_s": 100,
    }
    return ShapingSettings.model_validate(base | changes)


def play(grams: list[float | None], period_s: float, chosen: ShapingSettings) -> list[tuple[float, Decision]]:
    state, now_s, decisions = PolicyState(), 1000.0, []
    for value in grams:
        state, decision = decide(state, None if value is None else grid(value), chosen, now_s, POINTS)
        decisions.append((now_s, decision))
        now_s += period_s
    return decisions


def switches(decisions: list[tuple[float, Decision]]) -> list[float]:
    before, times = "full", []
    for now_s, decision in decisions:
        if decision.point != before:
            times.append(now_s)
        before = decision.point
    return times


def test_the_first_dirty_reading_turns_the_dial_at_once() -> None:
    (_, clean), (_, dirty) = play([200, 412], 1, settings())
    assert (clean.point, clean.reason) == ("full", "grid-clean:200<300")
    assert (dirty.point, dirty.reason, dirty.dial) == ("lite", "grid-dirty:412>350", 1)


def test_it_returns_after_the_dwell_and_says_that_it_waits() -> None:
    decisions = [d for _, d in play([412, 200, 200, 200], 40, settings())]
    assert [d.point for d in decisions] == ["lite", "lite", "lite", "full"]
    assert [d.reason for d in decisions[1:]] == ["dwell:grid-clean", "dwell:grid-clean", "grid-clean:200<300"]


def test_between_the_thresholds_nothing_moves_from_either_side() -> None:
    decisions = [d for _, d in play([320, 400, 320, 301, 299, 320], 1000, settings())]
    assert [d.point for d in decisions] == ["full", "lite", "lite", "lite", "full", "full"]
    assert decisions[2].reason == "grid-band:320"


def test_the_thresholds_themselves_belong_to_the_band() -> None:
    decisions = [d for _, d in play([350, 400, 300], 1000, settings())]
    assert [d.point for d in decisions] == ["full", "lite", "lite"]


def test_an_unknown_grid_leads_back_to_full_quality_after_the_dwell() -> None:
    decisions = [d for _, d in play([412, None, None, None], 60, settings())]
    assert [d.point for d in decisions] == ["lite", "lite", "full", "full"]
    assert decisions[1].reason == "dwell:grid-unknown"
    assert decisions[2].reason == "grid-unknown"


def test_an_assumed_constant_never_degrades_and_a_given_one_does() -> None:
    _, assumed = decide(PolicyState(), grid(473, "static", estimated=True), settings(), 0, POINTS)
    _, given_ = decide(PolicyState(), grid(473, "static"), settings(), 0, POINTS)
    assert (assumed.point, assumed.reason) == ("full", "grid-assumed")
    assert given_.point == "lite"


def test_strict_takes_full_quality_and_eco_the_cheapest_point_above_its_floor() -> None:
    for value in (100, 320, 900):
        _, decision = decide(PolicyState(), grid(value), settings(), 0, POINTS)
        assert decision.point_by_class["strict"] == "full"
        assert decision.point_by_class["eco"] == "nano"
    _, decision = decide(PolicyState(), None, settings(floors={"standard": 0.95, "eco": 0.93}), 0, POINTS)
    assert decision.point_by_class["eco"] == "lite"
    assert (decision.reason_by_class["strict"], decision.reason_by_class["eco"]) == ("strict", "eco")


def test_off_keeps_standard_at_full_quality_whatever_the_grid() -> None:
    _, decision = decide(PolicyState(), grid(900), settings(policy="off"), 0, POINTS)
    assert (decision.point, decision.reason) == ("full", "off")
    assert decision.point_by_class["eco"] == "nano"


@pytest.mark.parametrize(
    ("pinned", "answered", "reason"),
    [
        ("lite", "lite", "pin"),
        ("full", "full", "pin"),
        ("nano", "lite", "floor:0.95"),
        ("gone", "full", "pin"),
    ],
)
def test_a_pin_holds_where_it_meets_the_floor(pinned: str, answered: str, reason: str) -> None:
    _, decision = decide(PolicyState(), grid(100), settings(policy="pin", pin_point=pinned), 0, POINTS)
    assert (decision.point, decision.reason) == (answered, reason)


def test_a_named_fallback_point_below_the_floor_gives_way_to_the_next_better() -> None:
    _, decision = decide(PolicyState(), grid(900), settings(fallback_point="nano"), 0, POINTS)
    assert (decision.point, decision.reason) == ("lite", "floor:0.95")


def test_a_floor_that_no_cheaper_point_meets_keeps_full_quality() -> None:
    _, decision = decide(PolicyState(), grid(900), settings(floors={"standard": 0.99}), 0, POINTS)
    assert (decision.point, decision.reason) == ("full", "floor:0.99")


def test_a_family_of_one_point_answers_every_class_with_it() -> None:
    _, decision = decide(PolicyState(), grid(900), settings(), 0, POINTS[:1])
    assert set(decision.point_by_class.values()) == {"full"}


def test_a_dial_counts_up_only_when_a_point_or_a_reasons_code_changes() -> None:
    chosen = settings()
    dial = DialState.initial(POINTS, chosen)
    state, versions = PolicyState(), []
    for now_s, value in enumerate([200, 210, 412, 413, 200]):
        state, decision = decide(state, grid(value), chosen, float(now_s), POINTS)
        dial = dial.followed_by(decision)
        versions.append(dial.version)
    assert versions == [1, 1, 2, 2, 3]
    assert dial.answers("standard") == ("lite", "dwell:grid-clean")
    assert DialState.from_dict(dial.to_dict()) == dial


@pytest.mark.parametrize("broken", [{}, {"point_by_class": {"strict": "full"}, "reason_by_class": {}, "version": 1}])
def test_a_dial_that_misses_a_class_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must map each of strict, standard, eco"):
        DialState.from_dict(broken)


signals = st.one_of(st.none(), st.floats(0, 1500), st.sampled_from([299.0, 300.0, 301.0, 349.0, 350.0, 351.0]))
floors = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda f: {"standard": max(f), "eco": min(f)})


@given(
    grams=st.lists(signals, max_size=120),
    period_s=st.sampled_from([0.5, 7.0, 33.0, 100.0, 250.0]),
    dwell_s=st.sampled_from([0, 4, 100, 900]),
)
def test_two_switches_are_never_closer_than_the_dwell(
    grams: list[float | None], period_s: float, dwell_s: float
) -> None:
    times = switches(play(grams, period_s, settings(min_dwell_s=dwell_s)))
    assert all(later - earlier >= dwell_s for earlier, later in pairwise(times))


@given(grams=st.lists(signals, min_size=1, max_size=60), period_s=st.floats(0.1, 500), floor=floors)
def test_no_class_is_ever_answered_below_its_floor_by_a_degraded_point(
    grams: list[float | None], period_s: float, floor: dict[str, float]
) -> None:
    accuracy = {p.name: p.relative_accuracy for p in POINTS}
    for _, decision in play(grams, period_s, settings(floors=floor)):
        assert decision.point_by_class["strict"] == "full"
        for quality in ("standard", "eco"):
            name = decision.point_by_class[quality]
            assert name == "full" or accuracy[name] >= floor[quality]


@given(grams=st.lists(st.floats(300, 350), max_size=60), start=st.sampled_from([100.0, 900.0]))
def test_inside_the_band_nothing_switches(grams: list[float], start: float) -> None:
    decisions = play([start, *grams], 10_000, settings())
    assert {d.point for _, d in decisions[1:]} <= {decisions[0][1].point}


@given(
    settings_=st.builds(
        settings,
        policy=st.sampled_from(["off", "pin", "threshold"]),
        pin_point=st.sampled_from(["full", "lite", "nano", "gone"]),
        fallback_point=st.sampled_from([None, "full", "lite", "nano", "gone"]),
        floors=floors,
    ),
    grams=st.lists(signals, min_size=1, max_size=20),
)
def test_strict_is_never_degraded_under_any_settings(settings_: ShapingSettings, grams: list[float | None]) -> None:
    assert all(d.point_by_class["strict"] == "full" for _, d in play(grams, 50, settings_))


def test_flapping_a_hundred_times_switches_at_most_twice_in_any_dwell_window() -> None:
    times = switches(play([400.0, 200.0] * 100, 3, settings(min_dwell_s=60)))
    assert times
    assert all(sum(start <= t <= start + 60 for t in times) <= 2 for start in times)


def test_a_reasons_code_leaves_the_numbers_out() -> None:
    assert [code(r) for r in ("grid-dirty:412>350", "eco", "dwell:grid-clean")] == [
        "grid-dirty",
        "eco",
        "dwell:grid-clean",
    ]


def test_a_class_that_opted_out_is_answered_by_full_quality_and_says_so() -> None:
    (_, both), (_, eco) = (play([412], 1, settings(opt_out=names))[0] for names in (["standard", "eco"], ["eco"]))
    assert both.point_by_class == {"strict": "full", "standard": "full", "eco": "full"}
    assert both.reason_by_class == {"strict": "strict", "standard": "opt-out", "eco": "opt-out"}
    assert (both.dial, both.split, both.spike) == (0, None, None)
    assert (eco.point, eco.point_by_class["eco"]) == ("lite", "full")


def test_a_list_of_classes_may_be_given_as_text() -> None:
    assert settings(opt_out="standard, eco").opt_out == ("standard", "eco")
    assert settings(opt_out="").opt_out == ()
    with pytest.raises(ValueError, match="standard"):
        settings(opt_out="strict")


def test_a_spike_in_load_may_move_standard_requests_to_the_cheapest_point_above_their_floor() -> None:
    assert play([200], 1, settings())[0][1].spike == "lite"
    assert play([200], 1, settings(floors={"standard": 0.9, "eco": 0.9}))[0][1].spike == "nano"
    assert play([200], 1, settings(floors={"standard": 1, "eco": 0.9}))[0][1].spike is None
    assert play([200], 1, settings(spike_override=False))[0][1].spike is None


def test_a_dial_with_a_spike_survives_the_wire_and_a_change_of_it_is_pushed() -> None:
    on, off = (play([200], 1, settings(spike_override=allowed))[0][1] for allowed in (True, False))
    dial = DialState.of(on, 3)
    assert DialState.from_dict(dial.to_dict()) == dial
    assert "lite" in dial.points()
    assert dial.followed_by(on) is dial
    assert (dial.followed_by(off).version, dial.followed_by(off).spike) == (4, None)
    with pytest.raises(ValueError, match=r"dial\.spike"):
        DialState.from_dict({**dial.to_dict(), "spike": 7})
