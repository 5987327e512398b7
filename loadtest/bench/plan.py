"""What is measured, in which order. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

REALISTIC, UNIFORM = "realistic", "uniform"
UNIFORM_TOKENS = (8, 60)
SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    rounds: int = 3
    clients: tuple[int, ...] = (1, 16, 64)
    slices: int = 3
    """Turns that one contestant and the floor take for one number of clients."""
    slice_seconds: float = 1.5
    """How long a contestant is asked in one turn."""
    floor_slice_texts: int = 120
    """What the floor answers in one turn: about half a second."""
    warm_seconds: float = 2.0
    floor_texts: int = 1000
    rates_per_s: tuple[float, ...] = (5.0, 50.0)
    rate_seconds: float = 10.0
    settle_seconds: float = 10.0
    idle_seconds: float = 30.0
    cache_rounds: int = 2
    cache_texts: int = 1500
    """Distinct texts a cache round, once for the unique run and as many others for the repeated one."""
    zipf_exponent: float = 1.0


QUICK = Plan(
    rounds=1,
    slices=1,
    slice_seconds=1.0,
    floor_slice_texts=32,
    warm_seconds=0.5,
    floor_texts=200,
    rate_seconds=2.0,
    settle_seconds=0.5,
    idle_seconds=3.0,
    cache_rounds=1,
    cache_texts=300,
)
"""For development: every part runs, no figure is worth quoting."""


@dataclass(frozen=True)
class Cell:
    """One run of load."""

    mix: str
    clients: int


def cells(plan: Plan) -> list[Cell]:
    """The runs of every contestant in every round: the texts as they are from each number of clients, and uniform
    lengths from the most."""
    return [*(Cell(REALISTIC, clients) for clients in plan.clients), Cell(UNIFORM, max(plan.clients))]


def turn_order(names: Sequence[T], round_number: int) -> list[T]:
    """Who is measured when: each round begins one further on, so that nobody always follows the same one."""
    start = round_number % len(names) if names else 0
    return [*names[start:], *names[:start]]


def seconds_needed(plan: Plan, contestants: int, ours: int) -> float:
    """About how long the run takes, starting and stopping included (15 s a contestant, 8 s a floor)."""
    starting = 15 * (contestants + ours) + 16
    turns = plan.slices * (plan.slice_seconds + 0.3) + (plan.slices + 1) * plan.floor_slice_texts * 0.004
    rounds = plan.rounds * contestants * len(cells(plan)) * turns
    rates = contestants * len(plan.rates_per_s) * plan.rate_seconds
    caching = ours * plan.cache_rounds * (plan.cache_texts * 3 / 400 + plan.slices * plan.slice_seconds + 10)
    return (
        starting + contestants * plan.warm_seconds + plan.settle_seconds + plan.idle_seconds + rounds + rates + caching
    )


def times_s(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """When requests leave: a Poisson process given that exactly `rate x seconds` requests come, so that what idling
    adds to each request is the same for everybody."""
    chance = random.Random(seed)
    return sorted(chance.uniform(0, seconds) for _ in range(round(rate_per_s * seconds)))


def uniform_texts(
    texts: Sequence[str],
    count: int,
    tokens_of: Callable[[str], int],
    seed: int,
    bounds: tuple[int, int] = UNIFORM_TOKENS,
) -> Iterator[str]:
    """`count` texts whose lengths in tokens are uniform between `bounds`, made of the words of `texts`.

    `tokens_of` counts the tokens of one word. A text may miss its length by the tokens of one word.
    """
    words = sorted({word for text in texts for word in text.split()})
    if not words:
        raise ValueError("texts: hold no words")
    sizes = {word: tokens_of(word) for word in words}
    chance = random.Random(seed)
    for _ in range(count):
        left = chance.randint(*bounds) - SPECIAL_TOKENS
        chosen: list[str] = []
        while left > 0:
            chosen.append(chance.choice(words))
            left -= max(1, sizes[chosen[-1]])
        yield " ".join(chosen)


def weighted_draw(texts: Sequence[str], weights: Sequence[float], count: int, seed: int) -> list[str]:
    """`count` texts, the n-th most popular by the n-th largest weight; weights beyond the texts are left out."""
    chance = random.Random(seed)
    order = list(texts)
    chance.shuffle(order)
    ranked = sorted(weights, reverse=True)[: len(order)]
    return chance.choices(order[: len(ranked)], ranked, k=count)
