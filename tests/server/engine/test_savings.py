from __future__ import annotations

import pytest

from models.manifest import LatencyCell
from server.engine.savings import BatchingSavings, alone_ns_by_tokens

CELLS = (
    LatencyCell(rows=1, tokens=8, cpu_ms_per_text=2.0),
    LatencyCell(rows=1, tokens=16, cpu_ms_per_text=3.0),
    LatencyCell(rows=16, tokens=16, cpu_ms_per_text=1.0),
)


def test_a_text_alone_costs_what_was_measured_alone_and_more_the_longer_it_is() -> None:
    table = alone_ns_by_tokens(CELLS, 32)
    assert table is not None
    assert (table[1], table[8], table[12], table[16], table[32]) == (2e6, 2e6, 2.5e6, 3e6, 6e6)
    assert alone_ns_by_tokens(CELLS[2:], 32) is None


def test_a_batch_saves_the_difference_to_its_texts_one_by_one_and_may_cost_more() -> None:
    savings = BatchingSavings()
    assert savings.saved_ns(4, 7_000_000, 10e6) == 3_000_000
    assert savings.saved_ns(4, 12_000_000, 10e6) == -2_000_000
    assert savings.saved_ns(4, 7_000_000, 0) == 0


def test_texts_that_ran_alone_say_how_fast_this_machine_is() -> None:
    savings = BatchingSavings()
    assert savings.saved_ns(1, 4_000_000, 2e6) == 0
    assert savings.saved_ns(4, 7_000_000, 10e6) == pytest.approx(13_000_000)
