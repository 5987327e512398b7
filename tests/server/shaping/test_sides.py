"""Sessions keep to a side of a divided dial, and change it once as the dial moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.shaping.policy import DialState
from server.shaping.sides import Split, fraction

BY_CLASS = {"strict": "full", "standard": "full", "eco": "lite"}


@given(st.binary(max_size=64))
def test_a_session_changes_sides_once_while_the_dial_moves(session: bytes) -> None:
    sides = [Split("lite", share / 100).takes(session) for share in range(1, 100)]
    assert sides == sorted(sides)
    assert 0 <= fraction(session) < 1


def test_the_share_of_the_sessions_is_the_dials() -> None:
    split = Split("lite", 0.3)
    taken = sum(split.takes(f"session-{number}".encode()) for number in range(20_000))
    assert taken / 20_000 == pytest.approx(0.3, abs=0.015)


def test_a_fraction_is_the_same_in_every_process() -> None:
    assert fraction(b"a conversation") == pytest.approx(0.86307, abs=1e-4)


def test_a_divided_dial_names_both_its_points_and_is_read_back_as_it_was() -> None:
    dial = DialState(BY_CLASS, dict.fromkeys(BY_CLASS, "why"), 1, Split("nano", 0.999))
    assert dial.points() == {"full", "lite", "nano"}
    assert DialState.from_dict(dial.to_dict()) == dial


@pytest.mark.parametrize(
    "split", [5, {}, {"point": "lite"}, {"point": "lite", "share": 1.5}, {"point": 1, "share": 0.5}]
)
def test_a_split_that_says_nothing_sensible_is_refused(split: object) -> None:
    with pytest.raises(ValueError, match=r"dial\.split"):
        DialState.from_dict({"point_by_class": BY_CLASS, "reason_by_class": BY_CLASS, "version": 1, "split": split})
