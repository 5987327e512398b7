"""Latencies around moments at which something did or did not happen: what it makes of a percentile. Pure.

What happens for some milliseconds once a second can only change the requests that were under way then. All others are
the same with it and without it, so both percentiles are taken over them together, and a ratio is many times as sure as
one of percentiles of seconds that took turns: those differ by whatever else the machine does in them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loadtest.open_loop import Outcome

DRAWS = 2000


class Moment(NamedTuple):
    """A span of time by `time.perf_counter`, whether it happened in it, and the number of its pair: a pair has one
    moment in which it did, and one in which it did not. The `rest` runs to `until_s`, in which nothing happens."""

    begin_s: float
    end_s: float
    until_s: float
    happened: bool
    pair: int


class Sorted(NamedTuple):
    """Latencies in rising order, each with its pair and its weight in a second with the event and in one without."""

    latency_ms: npt.NDArray[np.float64]
    pair: npt.NDArray[np.int64]
    with_it: npt.NDArray[np.float64]
    without_it: npt.NDArray[np.float64]
    within: int
    """How many were under way at a moment."""


def sort(outcomes: Sequence[Outcome], moments: Sequence[Moment]) -> Sorted:
    """Weigh the answered requests: those under way at a moment (they were sent before its end and answered after its
    beginning) as often as one comes once a second, the others as often as they come beside it.

    `moments` follow one another in time; what was sent before the first or after the last one's rest is left out.
    """
    begins = [moment.begin_s for moment in moments]
    latencies, pairs, kinds = list[float](), list[int](), list[int]()
    for outcome in outcomes:
        at = bisect_right(begins, outcome.sent_s) - 1
        if outcome.status != 200 or outcome.sent_s > moments[-1].until_s:
            continue
        done_s = outcome.sent_s + outcome.latency_s
        if at + 1 < len(moments) and done_s >= begins[at + 1]:
            at += 1  # under way as the next one began
        elif at < 0:
            continue
        moment = moments[at]
        latencies.append(1000 * outcome.latency_s)
        pairs.append(moment.pair)
        kinds.append(int(moment.happened) if outcome.sent_s <= moment.end_s else _REST)
    kind = np.asarray(kinds)
    happened = sum(moment.happened for moment in moments)
    within = int(np.sum(kind != _REST))
    seconds = sum(moment.until_s - moment.begin_s for moment in moments)
    beside = (len(kind) / seconds - within / len(moments)) / max(int(np.sum(kind == _REST)), 1)
    weights = [
        np.where(kind == _REST, beside, np.where(kind == side, 1.0 / count, 0.0))
        for side, count in ((1, happened), (0, len(moments) - happened))
    ]
    order = np.argsort(latencies, kind="stable")
    return Sorted(np.asarray(latencies)[order], np.asarray(pairs)[order], weights[0][order], weights[1][order], within)


_REST = 2


def percentiles(of: Sorted, share: float, drawn: npt.NDArray[np.float64] | None = None) -> tuple[float, float]:
    """Percentile in milliseconds with the event and without it; `drawn` says how often each pair is counted."""
    found = []
    for weight in (of.with_it, of.without_it):
        sums = np.cumsum(weight if drawn is None else weight * drawn[of.pair])
        found.append(float(of.latency_ms[min(np.searchsorted(sums, share * sums[-1]), len(sums) - 1)]))
    return found[0], found[1]


def ratio(of: Sorted, share: float, seed: int = 1) -> tuple[float, float, float]:
    """Percentile with the event over that without it, and its 95 % bootstrap interval, drawing whole pairs."""
    chance, pairs = np.random.default_rng(seed), int(of.pair.max()) + 1
    ratios = []
    for _ in range(DRAWS):
        drawn = chance.multinomial(pairs, np.full(pairs, 1 / pairs)).astype(np.float64)
        first, second = percentiles(of, share, drawn)
        ratios.append(first / second)
    first, second = percentiles(of, share)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return first / second, float(low), float(high)
