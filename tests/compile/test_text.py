"""Batches are formed as the server forms them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from compile.data.dataset import Split
from compile.text import Encoded, encode, feed, load_tokenizer, pad_id, served_batches, sorted_batches
from compile.training import epoch_batches


@given(st.lists(st.integers(1, 60), min_size=1, max_size=100), st.integers(1, 20))
def test_every_row_is_in_one_batch_and_lengths_rise(lengths: list[int], rows: int) -> None:
    encoded = Encoded(tuple(tuple(range(n)) for n in lengths))
    batches = list(sorted_batches(encoded, rows))
    order = [i for batch in batches for i in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths)
    assert all(len(batch) == rows for batch in batches[:-1])


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 20))
def test_served_batches_hold_every_row_once_sort_only_what_waits_and_are_the_same_again(
    lengths: list[int], rows: int
) -> None:
    encoded = Encoded(tuple(tuple(range(n)) for n in lengths))
    batches = list(served_batches(encoded, rows))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert batches == list(served_batches(encoded, rows))
    for first in range(0, len(batches), 3):
        waiting = [lengths[i] for batch in batches[first : first + 3] for i in batch]
        assert waiting == sorted(waiting)
        assert len(waiting) == min(3 * rows, len(lengths) - first * rows)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=200), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_sees_every_row_once_and_is_the_same_again(lengths: list[int], rows: int, epoch: int) -> None:
    batches = epoch_batches(lengths, rows, seed=5, epoch=epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert epoch_batches(lengths, rows, seed=5, epoch=epoch) == batches


def test_epochs_differ() -> None:
    assert epoch_batches(list(range(50)), 4, 5, 0) != epoch_batches(list(range(50)), 4, 5, 1)


def test_padding_fills_to_the_longest_row_and_is_masked() -> None:
    made = feed(Encoded(((5, 6, 7), (8,))), [1, 0], pad=3)
    assert made["input_ids"].tolist() == [[8, 3, 3], [5, 6, 7]]
    assert made["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert set(made) == {"input_ids", "attention_mask"}
    assert made["input_ids"].dtype == np.int64


def test_the_tokenizer_files_own_padding_and_cutting_are_switched_off(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base / "tokenizer.json")
    text = " ".join(["refund"] * 30)
    split = Split((text, "hello"), np.zeros(2, dtype=np.int64))
    assert encode(tokenizer, split).lengths.tolist() == [32, 3]
    assert encode(load_tokenizer(tiny_base / "tokenizer.json", 10), split).lengths.tolist() == [10, 3]
    assert pad_id(tokenizer) == 0


def test_pairs_carry_the_side_of_every_token(tiny_base: Path) -> None:
    split = Split(("refund",), np.zeros(1, dtype=np.int64), ("money late",))
    encoded = encode(load_tokenizer(tiny_base / "tokenizer.json"), split)
    assert encoded.types == ((0, 0, 0, 1, 1, 1),)
    assert feed(encoded, [0], 0)["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["a", "[PAD]"], 1),
        (["a", "</s>", "<pad>"], 2),
        (["a", "b", "<|endoftext|>"], 2),
        (["a", "</s>"], 1),
        (["a"], 0),
    ],
)
def test_where_no_token_pads_the_one_that_ends_texts_does(tokens: list[str], expected: int) -> None:
    vocabulary = {token: at for at, token in enumerate(tokens)}
    assert pad_id(Tokenizer(WordLevel(vocabulary, unk_token="a"))) == expected
