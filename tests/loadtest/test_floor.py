"""The floor measures the published model itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.floor import Bare, feed_of, measure
from models.store import Store, Version

TEXTS = ["my card", "where is my parcel please"] * 40


def test_the_floor_of_a_published_family_is_that_of_its_cheapest_batch_size(tiny_version: Version) -> None:
    store = Store(tiny_version.path.parent.parent)
    found = measure(Bare(store.root, "tiny", "lite", TEXTS), rows=[4, 8])
    assert found.cpu_seconds_per_1k > found.tokenize_cpu_seconds_per_1k > 0
    assert set(found.cpu_seconds_per_1k_by_rows) == {4, 8}
    assert found.cpu_seconds_per_1k == min(found.cpu_seconds_per_1k_by_rows.values())
    assert found.cpu_seconds_per_1k == found.cpu_seconds_per_1k_by_rows[found.rows]
    assert 0 < found.single_p50_ms <= found.single_p99_ms
    assert found.mean_tokens == 3.5


def test_an_unknown_point_is_named(tiny_version: Version) -> None:
    with pytest.raises(KeyError, match="best"):
        Bare(Path(tiny_version.path.parent.parent), "tiny", "best", ["card"])


def test_a_slice_answers_whole_batches_of_all_lengths_and_the_next_goes_on(tiny_version: Version) -> None:
    bare = Bare(tiny_version.path.parent.parent, "tiny", "lite", TEXTS)
    assert len(bare.measure(8, 32).latencies_ms) == 4
    assert len(bare.measure(1, 5).latencies_ms) == 5
    assert len(bare.measure(8, 10_000).latencies_ms) == len(TEXTS) / 8


def test_slices_go_through_all_lengths_in_turn(tiny_version: Version) -> None:
    texts = [" ".join(["card"] * length) for length in range(1, 9)]
    bare = Bare(tiny_version.path.parent.parent, "tiny", "lite", texts)
    assert [len(batch[0].split()) for batch in bare._next(1, 4)] == [2, 4, 6, 8]
    assert [len(batch[0].split()) for batch in bare._next(1, 4)] == [3, 5, 7, 1]


def test_a_batch_is_padded_to_its_longest_text() -> None:
    feed = feed_of([[5, 6, 7], [8]], pad_id=9)
    assert feed["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert feed["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
