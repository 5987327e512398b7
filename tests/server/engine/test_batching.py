"""The batcher forms cheap batches, keeps its bounds, minds deadlines and starves nobody."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from server.engine.batching import NO_DEADLINE_NS, REACH, Batcher, BatchLimits, Pace

MS = 1_000_000

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=80)
limits = st.builds(
    BatchLimits,
    max_rows=st.integers(1, 32),
    max_tokens=st.integers(16, 2048),
    run_overhead_tokens=st.floats(0, 100),
)


def queue_of(tokens: list[int], padding_share: float = 1.0) -> Batcher[str, int]:
    queue: Batcher[str, int] = Batcher()
    for number, length in enumerate(tokens):
        queue.add("lane", number, tokens=length, weight=length, now_ns=number, padding_share=padding_share)
    return queue


def take(queue: Batcher[str, int], bounds: BatchLimits | None = None, now_ns: int = 0) -> list[int]:
    return queue.take(now_ns, bounds or BatchLimits()).jobs


def paced(queue: Batcher[str, int], ns_per_weight: float, batch_ns: float = 0.0) -> Batcher[str, int]:
    """The queue, as if it had measured this already."""
    for key in queue.lanes:
        queue.paces[key] = Pace(ns_per_weight, batch_ns)
    return queue


def test_an_empty_queue_gives_an_empty_batch() -> None:
    assert queue_of([]).take(0, BatchLimits()) == (None, [], [])


def test_a_lone_job_goes_at_once() -> None:
    assert take(queue_of([40])) == [0]


def test_texts_of_one_length_go_in_as_few_batches_as_the_rows_allow() -> None:
    queue = queue_of([25] * 40)
    sizes = []
    while queue.waiting:
        sizes.append(len(take(queue, BatchLimits(max_rows=16))))
    assert sum(sizes) == 40
    assert len(sizes) == 3


def test_a_long_text_does_not_make_short_ones_pay_for_its_padding() -> None:
    queue = queue_of([10, 10, 10, 10, 300])
    assert [sorted(take(queue)) for _ in range(2)] == [[0, 1, 2, 3], [4]]


def test_where_padding_is_free_batches_are_as_wide_as_they_may() -> None:
    assert sorted(take(queue_of([10, 20, 30, 40], padding_share=0.0))) == [0, 1, 2, 3]
    assert len(take(queue_of([10, 20, 30, 40], padding_share=1.0))) < 4


def test_a_text_over_the_token_bound_goes_alone() -> None:
    assert take(queue_of([500]), BatchLimits(max_tokens=100)) == [0]


@given(lengths, limits)
def test_every_job_is_taken_exactly_once(tokens: list[int], bounds: BatchLimits) -> None:
    queue = queue_of(tokens)
    taken: list[int] = []
    while queue.waiting:
        batch = take(queue, bounds)
        assert batch
        taken += batch
    assert sorted(taken) == list(range(len(tokens)))
    assert queue.backlog_ns() == 0


@given(lengths, limits)
def test_no_batch_exceeds_its_bounds(tokens: list[int], bounds: BatchLimits) -> None:
    queue = queue_of(tokens)
    while queue.waiting:
        batch = take(queue, bounds)
        longest = max(tokens[job] for job in batch)
        assert len(batch) <= bounds.max_rows
        assert len(batch) == 1 or len(batch) * longest <= bounds.max_tokens


@given(lengths, limits)
def test_without_deadlines_the_oldest_job_is_in_the_next_batch(tokens: list[int], bounds: BatchLimits) -> None:
    queue = queue_of(tokens)
    waiting = set(range(len(tokens)))
    while waiting:
        batch = take(queue, bounds)
        assert min(waiting) in batch
        waiting -= set(batch)


@dataclass
class Arrival:
    """A job that comes before a batch is formed: its lane, length, and the milliseconds it has."""

    lane: int
    tokens: int
    patience_ms: int | None


arrivals = st.lists(
    st.lists(
        st.builds(Arrival, st.integers(0, 3), st.integers(1, 60), st.none() | st.integers(1, 2000)),
        max_size=12,
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(arrivals, limits, st.none() | st.integers(1, 500), st.integers(1, 100))
def test_nobody_is_passed_over_more_often_than_the_bound_says(
    turns: list[list[Arrival]], bounds: BatchLimits, objective_ms: int | None, step_ms: int
) -> None:
    """A job that finds k older ones is in one of the next 2(k + 1) batches (or is given back as late), whatever comes
    after it, in whichever lane and with whatever deadline."""
    bounds = replace(bounds, objective_ns=None if objective_ms is None else objective_ms * MS)
    queue: Batcher[int, int] = Batcher()
    left: dict[int, int] = {}  # batches in which a job must be
    now_ns, number, turn = 0, 0, 0
    while turn < len(turns) or queue.waiting:
        for arrival in turns[turn] if turn < len(turns) else []:
            number += 1
            deadline_ns = NO_DEADLINE_NS if arrival.patience_ms is None else now_ns + arrival.patience_ms * MS
            left[number] = 2 * (queue.waiting + 1)
            queue.add(
                arrival.lane,
                number,
                tokens=arrival.tokens,
                weight=arrival.tokens,
                now_ns=now_ns,
                deadline_ns=deadline_ns,
            )
        turn += 1
        if not queue.waiting:
            continue
        taken = queue.take(now_ns, bounds)
        now_ns += step_ms * MS
        if taken.key is not None:
            queue.paces[taken.key].measured(step_ms * MS, sum(1.0 for _ in taken.jobs) or 1.0)
        for job in (*taken.jobs, *taken.late):
            del left[job]
        for job in left:
            left[job] -= 1
        assert all(allowed > 0 for allowed in left.values())
    assert not left


@settings(max_examples=50)
@given(st.integers(1, 400), st.lists(st.integers(1, 400), min_size=60, max_size=60), limits)
def test_nobody_is_starved_however_many_newcomers_come(victim: int, before: list[int], bounds: BatchLimits) -> None:
    queue = queue_of(before)
    queue.add("lane", -1, tokens=victim, weight=victim, now_ns=0)
    for order in range(len(before) + 1, 10_000):
        queue.add("lane", order, tokens=1 + order % 400, weight=1, now_ns=0, deadline_ns=order + 1)
        if -1 in take(queue, bounds):
            break
    assert order - len(before) <= 2 * (len(before) + 1)


def test_a_job_whose_deadline_is_near_goes_before_older_ones() -> None:
    queue = queue_of([100, 100])
    queue.add("other", 7, tokens=5, weight=5, now_ns=0, deadline_ns=50 * MS)
    paced(queue, 1e5, batch_ns=30 * MS)
    assert take(queue, BatchLimits(max_rows=1)) == [7]
    assert take(queue, BatchLimits(max_rows=1)) == [0]


def test_a_job_whose_deadline_is_far_waits_its_turn() -> None:
    queue = queue_of([100])
    queue.add("other", 7, tokens=5, weight=5, now_ns=0, deadline_ns=5000 * MS)
    assert take(paced(queue, 1e5, batch_ns=30 * MS)) == [0]


def test_the_oldest_is_not_passed_over_twice_in_a_row() -> None:
    queue = queue_of([100])
    for number in (7, 8, 9):
        queue.add("other", number, tokens=5, weight=5, now_ns=0, deadline_ns=50 * MS)
    paced(queue, 1e3, batch_ns=30 * MS)
    assert [take(queue, BatchLimits(max_rows=1))[0] for _ in range(4)] == [7, 0, 8, 9]


def test_a_job_that_cannot_be_in_time_is_given_back_before_it_costs_anything() -> None:
    queue = queue_of([100])
    queue.add("lane", 7, tokens=100, weight=100, now_ns=0, deadline_ns=2 * MS)
    paced(queue, 1e5)  # a text of 100 takes 10 ms, and never as little as 2
    taken = queue.take(0, BatchLimits())
    assert (taken.jobs, taken.late) == ([0], [7])
    assert queue.waiting == 0


def test_before_anything_is_measured_only_a_deadline_that_is_past_is_too_late() -> None:
    queue: Batcher[str, int] = Batcher()
    queue.add("lane", 1, tokens=300, weight=1e12, now_ns=0, deadline_ns=1000)
    assert queue.take(999, BatchLimits()).jobs == [1]
    queue.add("lane", 2, tokens=300, weight=1e12, now_ns=0, deadline_ns=1000)
    assert queue.take(1001, BatchLimits()).late == [2]


def test_a_prediction_that_only_turns_jobs_away_fades() -> None:
    """Nothing would ever correct it: what is turned away is not measured."""
    queue: Batcher[str, int] = Batcher()
    taken = []
    for attempt in range(200):
        queue.add("lane", attempt, tokens=10, weight=10, now_ns=0, deadline_ns=1 * MS)
        if attempt == 0:
            paced(queue, 1e9)
        taken += queue.take(0, BatchLimits()).jobs
    assert taken, "a single wrong measurement turned everybody away for ever"
    assert 0 not in taken


def test_a_batch_shrinks_so_that_its_oldest_keeps_the_objective() -> None:
    bounds = BatchLimits(objective_ns=100 * MS)
    queue = paced(queue_of([20] * 12), 2e5)  # 4 ms a text, and the oldest has 18 ms left
    batch = queue.take(82 * MS, bounds).jobs
    assert len(batch) == 4
    assert 0 in batch


def test_a_batch_shrinks_only_if_that_helps() -> None:
    bounds = BatchLimits(objective_ns=100 * MS)
    queue = paced(queue_of([20] * 12), 2e5)
    assert len(queue.take(99 * MS, bounds).jobs) == 12  # even alone it would be late
    queue = paced(queue_of([20] * 12), 2e5)
    assert len(queue.take(1 * MS, bounds).jobs) == 12  # there is time


def test_the_longest_leave_a_batch_that_shrinks_but_never_its_oldest() -> None:
    queue = queue_of([24, 20, 22, 26, 28])
    paced(queue, 1e6)
    assert sorted(queue.take(0, BatchLimits(objective_ns=70 * MS)).jobs) == [0, 1, 2]


def test_the_backlog_follows_what_batches_took() -> None:
    queue = queue_of([10, 20])
    assert queue.backlog_ns() == 30
    queue.paces["lane"].measured(300, 100.0)
    assert queue.backlog_ns() == 90


def cost(batches: list[list[int]], overhead: float) -> float:
    return sum(overhead + len(batch) * max(batch) for batch in batches)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), limits)
def test_what_waits_is_answered_at_the_least_cost_there_is(tokens: list[int], bounds: BatchLimits) -> None:
    """Against every way of cutting the lengths, in order, into batches within the bounds; as far as the batcher looks,
    all of them can be in one cut."""
    assume(len(tokens) <= REACH * bounds.max_rows)
    queue = queue_of(tokens)
    taken: list[list[int]] = []
    while queue.waiting:
        taken.append([tokens[job] for job in take(queue, bounds)])
    ordered = sorted(tokens)
    best = float("inf")
    for cuts in range(1 << (len(ordered) - 1)):
        batches, start = [], 0
        for index in range(1, len(ordered) + 1):
            if index == len(ordered) or cuts >> (index - 1) & 1:
                batches.append(ordered[start:index])
                start = index
        fits = all(len(b) <= bounds.max_rows and (len(b) == 1 or len(b) * b[-1] <= bounds.max_tokens) for b in batches)
        best = min(best, cost(batches, bounds.run_overhead_tokens)) if fits else best
    assert cost(taken, bounds.run_overhead_tokens) <= best + 1e-6
