"""Which question the n-th request of a run asks: settled before the run, so that two runs ask the same."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import count, islice

from loadtest.client import Question
from loadtest.texts import classes, popular


def questions(
    asked: Sequence[Question], requests: int, *, zipf: float | None, shares: dict[str, float], seed: int
) -> list[Question]:
    """One question a request. With `zipf` texts repeat by popularity (weight rank ** -zipf); without, none does."""
    drawn = unique(asked, seed) if zipf is None else popular(asked, seed, zipf)
    return list(islice(classes(drawn, seed + 1, shares), requests))


def unique(asked: Sequence[Question], seed: int) -> Iterator[Question]:
    """Every text once in a shuffled order; from the second round on with the round's number behind it, so that no cache
    has the answer."""
    order = list({question.text: question for question in asked}.values())
    random.Random(seed).shuffle(order)
    for lap in count():
        for question in order:
            text = question.text if lap == 0 else f"{question.text} ({lap + 1})"
            yield Question(text, question.quality, question.label)
