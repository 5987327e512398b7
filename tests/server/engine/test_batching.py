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


def test_texts_of_one_length_go_in_as_few_batches_as_the_rows_allow() -> None:
    lane = lane_of([25] * 40)
    sizes = []
    while len(lane):
        sizes.append(len(lane.take(BatchLimits(max_rows=16))))
    assert sorted(sizes) == [8, 16, 16]


def test_a_long_text_does_not_make_short_ones_pay_for_its_padding() -> None:
    lane = lane_of([10, 10, 10, 10, 300])
    batches = [sorted(lane.take(BatchLimits())) for _ in range(2)]
    assert batches == [[0, 1, 2, 3], [4]]


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


@given(lengths, limits)
def test_the_oldest_job_is_in_the_next_batch(tokens: list[int], bounds: BatchLimits) -> None:
    lane = lane_of(tokens)
    waiting = set(range(len(tokens)))
    while waiting:
        batch = lane.take(bounds)
        assert min(waiting) in batch
        waiting -= set(batch)


@settings(max_examples=50)
@given(st.integers(1, 400), st.lists(st.integers(1, 400), min_size=60, max_size=60), limits)
def test_nobody_is_starved_however_many_newcomers_come(victim: int, before: list[int], bounds: BatchLimits) -> None:
    """Each batch takes at least one job that is older, so a job waits for no more batches than it has elders."""
    lane = lane_of(before)
    lane.add(-1, victim, len(before))
    for order in range(len(before) + 1, 10_000):
        lane.add(order, 1 + order % 400, order)
        if -1 in lane.take(bounds):
            break
    assert order - len(before) <= len(before) + 1


def cost(batches: list[list[int]], bounds: BatchLimits) -> float:
    return sum(bounds.run_overhead_tokens + len(batch) * max(batch) for batch in batches)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), limits)
def test_what_waits_is_answered_at_the_least_cost_there_is(tokens: list[int], bounds: BatchLimits) -> None:
    """Against every way of cutting the lengths, in order, into batches within the bounds."""
    lane = lane_of(tokens)
    taken: list[list[int]] = []
    while len(lane):
        taken.append([tokens[job] for job in lane.take(bounds)])
    ordered = sorted(tokens)
    best = float("inf")
    for cuts in range(1 << (len(ordered) - 1)):
        batches, start = [], 0
        for index in range(1, len(ordered) + 1):
            if index == len(ordered) or cuts >> (index - 1) & 1:
                batches.append(ordered[start:index])
                start = index
        fits = all(len(b) <= bounds.max_rows and (len(b) == 1 or len(b) * b[-1] <= bounds.max_tokens) for b in batches)
        best = min(best, cost(batches, bounds)) if fits else best
    assert cost(taken, bounds) <= best + 1e-6
