"""Latencies of two kinds of slices that took turns: their ratio, and how sure it is. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loadtest.client import percentile
from loadtest.open_loop import Outcome

Pair = tuple[Sequence[float], Sequence[float]]
"""Latencies of two slices side by side, in one unit: of what is judged, and of what it is judged by."""
DRAWS = 2000


class Part(NamedTuple):
    """A slice: its bounds by `time.perf_counter`, whether it is of the kind that is judged, and the number of its
    pair."""

    begin_s: float
    end_s: float
    judged: bool
    pair: int


def paired(outcomes: Sequence[Outcome], parts: Sequence[Part]) -> list[Pair]:
    """Latencies in milliseconds of the answered requests, by the slice that each was sent in; `parts` follow one
    another in time, and what was sent between them is left out."""
    begins = [part.begin_s for part in parts]
    found: dict[int, tuple[list[float], list[float]]] = {part.pair: ([], []) for part in parts}
    for outcome in outcomes:
        at = bisect_right(begins, outcome.sent_s) - 1
        if at >= 0 and outcome.status == 200 and outcome.sent_s <= parts[at].end_s:
            found[parts[at].pair][not parts[at].judged].append(1000 * outcome.latency_s)
    return list(found.values())


def ratio_of(pairs: Sequence[Pair], share: float = 0.99) -> float:
    """Percentile of all latencies of the first kind over that of all of the second; NaN where either has none."""
    first, second = ([value for pair in pairs for value in pair[side]] for side in (0, 1))
    return percentile(first, share) / percentile(second, share)


def interval(pairs: Sequence[Pair], share: float = 0.99, seed: int = 1) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio, drawing whole pairs."""
    chance = np.random.default_rng(seed)
    sides = [[np.asarray(pair[side], dtype=np.float64) for pair in pairs] for side in (0, 1)]
    drawn = []
    for _ in range(DRAWS):
        picked = chance.integers(0, len(pairs), len(pairs))
        first, second = (
            np.quantile(np.concatenate([side[n] for n in picked]), share, method="inverted_cdf") for side in sides
        )
        drawn.append(first / second)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def typical_ratio(pairs: Sequence[Pair], share: float = 0.99, seed: int = 1) -> tuple[float, float, float]:
    """The median over the pairs of each one's own ratio of percentiles, with its 95 % bootstrap interval: some slices
    that something else disturbed do not decide it, as they do the percentile of all latencies together."""
    ratios = np.array([percentile(first, share) / percentile(second, share) for first, second in pairs])
    chance = np.random.default_rng(seed)
    drawn = np.median(chance.choice(ratios, (DRAWS, len(ratios))), axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)
