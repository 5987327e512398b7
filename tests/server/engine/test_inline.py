"""Running on the loop is given up where it keeps others waiting, and tried again."""

from __future__ import annotations

from server.engine.inline import MOST_LEFT, Inline


def left_to_workers(inline: Inline) -> int:
    """How many lone jobs go to the workers before one runs on the loop."""
    count = 0
    while not inline.allows():
        count += 1
    return count


def test_as_long_as_nobody_comes_meanwhile_every_lone_job_runs_on_the_loop() -> None:
    inline = Inline()
    for _ in range(100):
        assert inline.allows()
        inline.ran(crowded=False)


def test_each_crowded_run_in_a_row_leaves_twice_as_many_to_the_workers() -> None:
    inline = Inline()
    found = []
    for _ in range(8):
        inline.ran(crowded=True)
        found.append(left_to_workers(inline))
    assert found == [2, 4, 8, 16, 32, 64, MOST_LEFT, MOST_LEFT]


def test_one_run_that_kept_nobody_waiting_makes_up_for_it() -> None:
    inline = Inline()
    inline.ran(crowded=True)
    inline.ran(crowded=True)
    left_to_workers(inline)
    inline.ran(crowded=False)
    inline.ran(crowded=True)
    assert left_to_workers(inline) == 2
