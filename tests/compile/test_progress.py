"""How much longer a run takes, from what equal passes took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.progress import Forecast, past_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


WORKS = [("teacher", "finetune"), ("lite", "distil"), ("nano", "distil")]


def forecast(clock: Clock, past: dict[tuple[str, str], float]) -> Forecast:
    made = Forecast(clock)
    made.planned(WORKS, past)
    return made


def test_the_time_left_is_what_equal_passes_took_before() -> None:
    one = forecast(Clock(), {("teacher", "finetune"): 100.0, ("lite", "distil"): 30.0, ("nano", "distil"): 20.0})
    assert one.left() == (150.0, True)
    assert one.words() == "about 2 min left"
    assert (one.number, one.count) == (0, 3)


def test_a_running_pass_is_judged_by_its_share_and_the_clock() -> None:
    clock = Clock()
    one = forecast(clock, {("lite", "distil"): 30.0, ("nano", "distil"): 20.0})
    one.started(WORKS[0])
    assert one.left() == (50.0, False)
    assert one.words() == "at least 50 s left"
    clock.now = 10.0
    one.moved(0.25)
    assert one.left() == (pytest.approx(80.0), True)


def test_a_pass_never_seen_for_this_label_takes_what_it_took_for_others() -> None:
    one = forecast(Clock(), {("teacher", "finetune"): 1.0})
    assert one.words() == "at least 1 s left"
    one.started(WORKS[0])
    one.finished(0.0, cached=True)
    one.started(WORKS[1])
    one.finished(40.0, cached=False)
    assert one.left() == (40.0, True)


def test_nothing_known_is_said_and_a_dropped_variant_is_not_waited_for() -> None:
    one = forecast(Clock(), {})
    assert one.words() == "time left not known yet"
    one.started(WORKS[0])
    one.finished(5.0, cached=False)
    one.dropped("lite")
    one.dropped("nano")
    assert one.left() == (0.0, True)


def test_past_seconds_are_read_from_the_cache_and_what_is_unreadable_is_left_out(tmp_path: Path) -> None:
    for name, text in {
        "distil-a1": json.dumps({"label": "lite", "seconds": 10}),
        "distil-b2": json.dumps({"label": "lite", "seconds": 30}),
        "drop_layers-c3": json.dumps({"label": "lite", "seconds": 1}),
        "export-d4": "{",
        "export-e5": json.dumps({"meta": {}}),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "done.json").write_text(text)
    assert past_seconds(tmp_path) == {("lite", "distil"): 20.0, ("lite", "drop_layers"): 1.0}


@given(st.lists(st.floats(0.01, 1e4), min_size=3, max_size=3), st.floats(0, 1))
def test_the_time_left_never_is_negative_and_ends_at_zero(seconds: list[float], share: float) -> None:
    clock = Clock()
    one = forecast(clock, dict(zip(WORKS, seconds, strict=True)))
    for work, took in zip(WORKS, seconds, strict=True):
        one.started(work)
        clock.now += took * 2
        one.moved(share)
        assert one.left()[0] >= 0
        one.finished(took, cached=False)
    assert one.left() == (0.0, True)
