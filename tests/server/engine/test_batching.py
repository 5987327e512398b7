"""The batcher forms cheap batches, keeps its bounds and starves nobody."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.batching import BatchLimits, Lane

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=80)
limits = st.builds(
    BatchLimits,
    max_rows=st.integers(1, 32),
    max_tokens=st.integers(16, 2048),
    max_passed_over=st.integers(0, 8),
    run_overhead_tokens=st.floats(0, 100),
)


def lane_of(tokens: list[int]) -> Lane[int]:
    lane: Lane[int] = Lane()
    for number, length in enumerate(tokens):
        lane.add(number, length, number)
    return lane


def test_an_empty_lane_gives_an_empty_batch() -> None:
    assert Lane[int]().take(BatchLimits()) == []


def test_a_lone_job_goes_at_once() -> None:
    assert lane_of([40]).take(BatchLimits()) == [0]


def test_texts_of_one_length_fill_the_batch() -> None:
    assert len(lane_of([25] * 40).take(BatchLimits(max_rows=16))) == 16


def test_a_long_text_does_not_make_short_ones_pay_for_its_padding() -> None:
    lane = lane_of([10, 10, 10, 10, 300])
    batches = [sorted(lane.take(BatchLimits())) for _ in range(2)]
    assert sorted(batches) == [[0, 1, 2, 3], [4]]


def test_a_text_over_the_token_bound_goes_alone() -> None:
    assert lane_of([500]).take(BatchLimits(max_tokens=100)) == [0]


@given(lengths, limits)
def test_every_job_is_taken_exactly_once(tokens: list[int], bounds: BatchLimits) -> None:
    lane = lane_of(tokens)
    taken: list[int] = []
    while len(lane):
        batch = lane.take(bounds)
        assert batch
        taken += batch
    assert sorted(taken) == list(range(len(tokens)))


@given(lengths, limits)
def test_no_batch_exceeds_its_bounds(tokens: list[int], bounds: BatchLimits) -> None:
    lane = lane_of(tokens)
    while len(lane):
        batch = lane.take(bounds)
        longest = max(tokens[job] for job in batch)
        assert len(batch) <= bounds.max_rows
        assert len(batch) == 1 or len(batch) * longest <= bounds.max_tokens


@settings(max_examples=50)
@given(st.integers(1, 400), st.lists(st.integers(1, 400), min_size=400, max_size=400), limits)
def test_nobody_is_starved_however_many_newcomers_come(victim: int, newcomers: list[int], bounds: BatchLimits) -> None:
    """With one job waiting longest, it is taken after at most `max_passed_over` other batches."""
    lane: Lane[int] = Lane()
    lane.add(-1, victim, 0)
    arrivals = iter(enumerate(newcomers, 1))
    passed_over = 0
    while True:
        for order, length in (next(arrivals) for _ in range(bounds.max_rows)):
            lane.add(order, length, order)
        if -1 in lane.take(bounds):
            break
        passed_over += 1
        assert passed_over <= bounds.max_passed_over


def test_discarded_jobs_are_returned_and_never_taken() -> None:
    lane = lane_of([5, 6, 7])
    assert lane.discard(lambda job: job == 1) == [1]
    assert sorted(lane.take(BatchLimits())) == [0, 2]
