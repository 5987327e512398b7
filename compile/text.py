"""Tokenizing and batching as the server does it: neighbours in length share a batch, padded to its longest row."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compile.data.dataset import Split
from compile.errors import BaseError

Ints = NDArray[np.int64]

# With 64 clients, two workers and batches of 16, about so many batches' worth of texts wait when one is formed.
_WAITING_BATCHES = 3


@dataclass(frozen=True)
class Encoded:
    """Token numbers of every row; `types` is None unless rows are pairs and the model tells their sides apart."""

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Ints:
        """Tokens of every row, special ones included."""
        return np.array([len(row) for row in self.ids], dtype=np.int64)

    def every(self, step: int) -> Encoded:
        """Every `step`-th row, from the first on; a step below 1 counts as 1."""
        step = max(1, step)
        return Encoded(self.ids[::step], None if self.types is None else self.types[::step])


def load_tokenizer(path: Path, max_tokens: int | None = None) -> Tokenizer:
    """Read tokenizer.json; padding off, truncation at `max_tokens` or off, whatever the file says.

    Raises BaseError if it is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower type
        problem = f"{path} cannot be read as a tokenizer ({error})"
        raise BaseError("base", problem, "download it again, or save it again with a fast tokenizer") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if max_tokens is not None:
        tokenizer.enable_truncation(max_tokens)
    return tokenizer


def encode(tokenizer: Tokenizer, split: Split, token_types: bool = True) -> Encoded:
    """Tokenize every row of a split, a pair joined as the tokenizer's template says; `token_types`: keep the sides."""
    if split.texts_b is None:
        return Encoded(tuple(tuple(e.ids) for e in tokenizer.encode_batch(list(split.texts))))
    encodings = tokenizer.encode_batch(list(zip(split.texts, split.texts_b, strict=True)))
    types = tuple(tuple(e.type_ids) for e in encodings) if token_types else None
    return Encoded(tuple(tuple(e.ids) for e in encodings), types)


def pad_id(tokenizer: Tokenizer) -> int:
    """Number of the padding token; where the vocabulary names none, of the one that ends texts, or else 0."""
    for token in ("[PAD]", "<pad>", "<|endoftext|>", "</s>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    return 0


def feed(encoded: Encoded, rows: Sequence[int], pad: int) -> dict[str, Ints]:
    """Graph inputs (int64, [rows, tokens]) of the given rows, padded to the longest of them."""
    tokens = max(len(encoded.ids[i]) for i in rows)
    ids = np.full((len(rows), tokens), pad, dtype=np.int64)
    mask = np.zeros((len(rows), tokens), dtype=np.int64)
    types = np.zeros((len(rows), tokens), dtype=np.int64)
    for at, row in enumerate(rows):
        length = len(encoded.ids[row])
        ids[at, :length] = encoded.ids[row]
        mask[at, :length] = 1
        if encoded.types is not None:
            types[at, :length] = encoded.types[row]
    made = {"input_ids": ids, "attention_mask": mask}
    if encoded.types is not None:
        made["token_type_ids"] = types
    return made


def sorted_batches(encoded: Encoded, rows_per_batch: int) -> Iterator[list[int]]:
    """Row numbers of every batch when all rows are sorted by length: as little padding as can be."""
    yield from _cut(encoded, range(len(encoded)), rows_per_batch)


def served_batches(encoded: Encoded, rows_per_batch: int) -> Iterator[list[int]]:
    """Row numbers of every batch as a busy server forms them: rows come in no order of length, and of those that wait,
    `_WAITING_BATCHES` batches' worth, neighbours in length share a batch. The same at each call."""
    order = list(range(len(encoded)))
    random.Random(0).shuffle(order)
    window = rows_per_batch * _WAITING_BATCHES
    for start in range(0, len(order), window):
        yield from _cut(encoded, order[start : start + window], rows_per_batch)


def _cut(encoded: Encoded, rows: Iterable[int], rows_per_batch: int) -> Iterator[list[int]]:
    order = sorted(rows, key=lambda i: (len(encoded.ids[i]), i))
    for start in range(0, len(order), rows_per_batch):
        yield order[start : start + rows_per_batch]
