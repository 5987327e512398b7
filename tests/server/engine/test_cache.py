"""The cache is bounded, forgets in time, and never serves a class a worse answer than it may get."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.engine.cache import ENTRY_OVERHEAD_BYTES, AnswerCache, CachedAnswer, cache_key
from server.engine.tokenizer import Truncation


def answer(rank: int, labels: int = 3) -> CachedAnswer:
    return CachedAnswer(np.full(labels, rank, dtype=np.float32), f"point{rank}", f"variant{rank}", rank, 1000)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_answer_from_a_cheaper_point_does_not_serve_a_stricter_class() -> None:
    cache = AnswerCache(10_000, 60)
    cache.put(b"key", answer(rank=2))
    assert cache.get(b"key", worst_rank=0) is None
    assert cache.get(b"key", worst_rank=2) is not None


def test_an_answer_from_a_better_point_serves_everyone() -> None:
    cache = AnswerCache(10_000, 60)
    cache.put(b"key", answer(rank=0))
    assert all(cache.get(b"key", worst_rank=rank) is not None for rank in range(3))


def test_a_cheaper_answer_does_not_replace_a_better_one() -> None:
    cache = AnswerCache(10_000, 60)
    cache.put(b"key", answer(rank=0))
    cache.put(b"key", answer(rank=2))
    found = cache.get(b"key", worst_rank=2)
    assert found is not None
    assert found.rank == 0


def test_entries_are_forgotten_after_their_time() -> None:
    clock = Clock()
    cache = AnswerCache(10_000, 60, clock)
    cache.put(b"key", answer(0))
    clock.now = 59
    assert cache.get(b"key", 0) is not None
    clock.now = 61
    assert cache.get(b"key", 0) is None


@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.integers(1, 200)), max_size=60))
def test_the_byte_bound_holds_whatever_is_put_in(entries: list[tuple[bytes, int]]) -> None:
    cache = AnswerCache(5_000, 60)
    for key, labels in entries:
        cache.put(key, answer(0, labels))
        assert cache.size_bytes <= 5_000


def test_shrinking_keeps_within_the_new_bound() -> None:
    cache = AnswerCache(100_000, 60)
    for number in range(50):
        cache.put(b"%d" % number, answer(0))
    cache.resize(5_000, 60)
    assert 0 < cache.size_bytes <= 5_000


def test_a_bound_of_zero_keeps_nothing() -> None:
    cache = AnswerCache(0, 60)
    cache.put(b"key", answer(0))
    assert len(cache) == 0


def test_an_entry_grows_no_younger_when_the_bounds_change() -> None:
    clock = Clock()
    cache = AnswerCache(10_000, 60, clock)
    cache.put(b"key", answer(0))
    clock.now = 50
    cache.resize(20_000, 100)
    clock.now = 99
    assert cache.get(b"key", 0) is not None
    clock.now = 101
    assert cache.get(b"key", 0) is None


def test_a_shorter_time_holds_for_the_entries_that_are_there() -> None:
    clock = Clock()
    cache = AnswerCache(10_000, 60, clock)
    cache.put(b"key", answer(0))
    clock.now = 20
    cache.resize(10_000, 10)
    assert cache.get(b"key", 0) is None


def test_shrinking_keeps_the_newest_entries() -> None:
    clock = Clock()
    cache = AnswerCache(100_000, 60, clock)
    for number in range(50):
        clock.now = number / 10
        cache.put(b"%d" % number, answer(0))
    cache.resize(2 * (ENTRY_OVERHEAD_BYTES + 12), 60)
    assert [number for number in range(50) if cache.get(b"%d" % number, 0) is not None] == [48, 49]


def test_the_size_estimate_covers_what_an_entry_really_takes() -> None:
    cache = AnswerCache(2000 * (ENTRY_OVERHEAD_BYTES + 12), 60)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(6000):  # most of them push an older one out
        cache.put(cache_key(b"family", f"text {number}", None, None), answer(0))
    real = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(cache) == 2000
    assert real <= cache.size_bytes


def test_a_kept_reply_counts_in_the_bound_and_leaves_with_its_answer() -> None:
    cache = AnswerCache(3 * (ENTRY_OVERHEAD_BYTES + 12) + 100, 60)
    for number in range(3):
        cache.put(b"%d" % number, answer(0))
    before = cache.size_bytes
    found = cache.get(b"2", 0)
    assert found is not None
    found.keep_body(b"x" * 100)
    found.keep_body(b"y" * 100)  # once is enough
    assert cache.size_bytes == before + 100
    assert found.body == b"x" * 100
    other = cache.get(b"1", 0)
    assert other is not None
    other.keep_body(b"z")
    assert cache.get(b"0", 0) is None  # pushed out, as least recently used
    cache.clear()
    found.keep_body(b"late")
    assert cache.size_bytes == 0


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3), st.integers(0, 3000)), max_size=80))
def test_the_size_is_that_of_the_entries_whatever_is_put_kept_and_replaced(steps: list[tuple[str, int, int]]) -> None:
    cache = AnswerCache(4 * (ENTRY_OVERHEAD_BYTES + 12) + 2000, 60)
    for name, rank, body_bytes in steps:
        cache.put(name.encode(), answer(rank))
        found = cache.get(name.encode(), 3)
        if found is not None:
            found.keep_body(b"x" * body_bytes)
        entries = [kept for name in "abcdefgh" if (kept := cache.get(name.encode(), 3)) is not None]
        bodies = sum(len(kept.body or b"") for kept in entries)
        assert cache.size_bytes == len(entries) * (ENTRY_OVERHEAD_BYTES + 12) + bodies
        assert cache.size_bytes <= 4 * (ENTRY_OVERHEAD_BYTES + 12) + 2000


def test_an_answer_that_was_made_elsewhere_brings_its_age_along() -> None:
    clock = Clock()
    cache = AnswerCache(10_000, 60, clock)
    cache.put(b"old", answer(0), age_s=50)
    cache.put(b"too old", answer(0), age_s=60)
    assert cache.get(b"too old", 0) is None
    clock.now = 9
    assert cache.get(b"old", 0) is not None
    clock.now = 11
    assert cache.get(b"old", 0) is None


def test_a_cheaper_answer_replaces_a_better_one_that_is_too_old() -> None:
    clock = Clock()
    cache = AnswerCache(10_000, 60, clock)
    cache.put(b"key", answer(rank=0))
    clock.now = 61
    cache.put(b"key", answer(rank=2))
    found = cache.get(b"key", worst_rank=2)
    assert found is not None
    assert found.rank == 2


truncations: st.SearchStrategy[Truncation | None] = st.sampled_from((None, "left", "right"))
# Pieces of the key's own layout, which might make two requests run together.
texts = st.text() | st.sampled_from(["", "0:", "1:0:", ":0:0:", "|", "left:", "|a", "a|"])
requests = st.tuples(st.binary() | texts.map(str.encode), texts, st.none() | texts, truncations)


@given(requests, requests)
def test_keys_are_equal_only_for_equal_requests(
    one: tuple[bytes, str, str | None, Truncation | None], other: tuple[bytes, str, str | None, Truncation | None]
) -> None:
    assert (cache_key(*one) == cache_key(*other)) == (one == other)


@given(st.text(), st.text())
def test_a_pair_is_not_its_concatenation(first: str, second: str) -> None:
    assert cache_key(b"f", first, second, None) != cache_key(b"f", first + second, None, None)
    assert cache_key(b"f", first, second, None) != cache_key(b"f", first + "|" + second, None, None)
