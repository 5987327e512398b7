"""The curves' settings are such that a server takes each of them."""

from __future__ import annotations

import pytest

from loadtest.curves import OFF, Cell, Tally, cells
from server.settings import Settings
from server.shaping.tunables import Tunables


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: f"{cell.knob} {cell.shown}")
def test_a_setting_is_valid_over_the_defaults(cell: Cell) -> None:
    taken = Tunables.of(Settings()).apply({**OFF, **cell.changes})
    assert taken.version == 1


def test_each_knob_has_at_least_two_settings() -> None:
    knobs = [cell.knob for cell in cells()]
    assert min(knobs.count(knob) for knob in knobs) >= 2


def test_a_tally_tells_median_and_range_of_what_was_measured() -> None:
    assert Tally(joules=[3.0, 1.0, 2.0]).to_dict() == {"joules": {"median": 2.0, "least": 1.0, "most": 3.0}}
