"""Cascades as pure logic: calibrated confidence, thresholds, and which points make the front.

A cascade asks a cheap variant first. `softmax(logits / temperature)` is its calibrated confidence; a text whose largest
probability lies below the threshold escalates to the dearer variant, whose answer then counts. Everything here is
chosen on held-out texts (the validation split); the test split only judges what was chosen (`passes.calibrate`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compile.bootstrap import RESAMPLES, Flags, relative_accuracy_lower

Floats = NDArray[np.float64]
Logits = NDArray[np.float32]
Labels = NDArray[np.int64]
# Temperatures beyond these bounds turn every confidence into 1 or into 1/labels.
_LEAST_TEMPERATURE, _GREATEST_TEMPERATURE = 0.05, 20.0
_BISECTIONS = 60
_BINS = 15
_DECIMALS = 6
PERCENTS_KEPT = tuple(range(5, 100, 5))
"""Shares of the texts that the first variant answers itself, for which thresholds are tried."""
_NAME_PART = 28


def probabilities(logits: Logits, temperature: float) -> Floats:
    """`softmax(logits / temperature)` by row, float64 [rows, labels]."""
    scaled = logits.astype(np.float64) / temperature
    raised = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    shares: Floats = raised / raised.sum(axis=-1, keepdims=True)
    return shares


def confidence(logits: Logits, temperature: float) -> Floats:
    """The largest probability of every row, float64 [rows]."""
    largest: Floats = probabilities(logits, temperature).max(axis=-1)
    return largest


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017), within 0.05 to 20.

    The likelihood is concave in 1/temperature, so its slope is bisected: mean logit of the label minus the logits' mean
    under their own softmax.
    """
    rows = np.arange(len(labels))
    exact = logits.astype(np.float64)

    def slope(inverse: float) -> float:
        expected = (probabilities(logits, 1 / inverse) * exact).sum(axis=-1)
        return float((exact[rows, labels] - expected).mean())

    low, high = 1 / _GREATEST_TEMPERATURE, 1 / _LEAST_TEMPERATURE
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


def negative_log_likelihood(logits: Logits, labels: Labels, temperature: float) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    chosen = probabilities(logits, temperature)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())


def expected_calibration_error(confident: Floats, right: Flags) -> float:
    """Mean gap between confidence and accuracy over 15 bins of equal width, weighted by rows (Naeini et al. 2015)."""
    bins = np.minimum((confident * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.bincount(bins, weights=confident - right, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(confident))


@dataclass(frozen=True)
class Answers:
    """One variant's logits [rows, labels] on the held-out texts, and its measured cost per 1,000 texts."""

    name: str
    logits: Logits
    cpu_seconds_per_1k: float
    joules_per_1k: float | None = None


@dataclass(frozen=True)
class Point:
    """A way to answer, rated on the held-out texts: a variant alone, or a cascade where `first` is given."""

    name: str
    variant: str
    accuracy: float
    relative_accuracy_lower: float
    """Paired bootstrap against the teacher, one-sided 95 %."""
    cpu_seconds_per_1k: float
    joules_per_1k: float | None = None
    first: str | None = None
    temperature: float = 1.0
    threshold: float = 0.0
    escalated_share: float = 0.0


def thresholds(confident: Floats, percents_kept: Iterable[int] = PERCENTS_KEPT) -> list[float]:
    """Rising thresholds below which all but about the given percentages of the confidences lie, each once.

    A threshold lies halfway between two confidences that differ by a millionth or more, so that rounding elsewhere
    moves no text; none is given under which no text or every text would escalate.
    """
    ranked = np.sort(confident.round(_DECIMALS))
    steps = np.unique(ranked)
    made = set()
    for percent in percents_kept:
        below = round(len(ranked) * (1 - percent / 100))
        upper = int(np.searchsorted(steps, ranked[min(below, len(ranked) - 1)]))
        if upper > 0:
            made.add(float((steps[upper - 1] + steps[upper]) / 2))
    return sorted(made)


def rate(
    answers: Sequence[Answers],
    temperatures: Mapping[str, float],
    labels: Labels,
    teacher_right: Flags,
    seed: int,
    resamples: int = RESAMPLES,
) -> list[Point]:
    """Every variant alone, then every cascade of a cheaper and a dearer one, rated on the held-out texts.

    A cascade costs `first + escalated share * second`: texts that escalate are batched among themselves, so a batch is
    as full as any other.
    """
    right = {one.name: one.logits.argmax(-1) == labels for one in answers}
    lower = {name: relative_accuracy_lower(flags, teacher_right, seed, resamples) for name, flags in right.items()}
    points = [
        Point(a.name, a.name, float(right[a.name].mean()), lower[a.name], a.cpu_seconds_per_1k, a.joules_per_1k)
        for a in answers
    ]
    taken = set(right)
    for second in answers:
        for first in answers:
            if first.cpu_seconds_per_1k >= second.cpu_seconds_per_1k:
                continue
            temperature = temperatures[first.name]
            confident = confidence(first.logits, temperature)
            for threshold in thresholds(confident):
                escalated = confident < threshold
                share = float(escalated.mean())
                flags = np.where(escalated, right[second.name], right[first.name])
                name = _name(second.name, first.name, share, taken)
                taken.add(name)
                points.append(
                    Point(
                        name,
                        second.name,
                        float(flags.mean()),
                        relative_accuracy_lower(flags, teacher_right, seed, resamples),
                        first.cpu_seconds_per_1k + share * second.cpu_seconds_per_1k,
                        added(first.joules_per_1k, share, second.joules_per_1k),
                        first.name,
                        temperature,
                        threshold,
                        share,
                    )
                )
    return points


def added(first: float | None, share: float, second: float | None) -> float | None:
    """Joules of asking the first always and the second for a share; None where either is unmeasured."""
    return None if first is None or second is None else first + share * second


def _name(second: str, first: str, escalated_share: float, taken: Collection[str]) -> str:
    """`<dearer>-<cheaper>-<percent that the cheaper answers>`, short enough for a name and not taken."""
    name = f"{second[:_NAME_PART]}-{first[:_NAME_PART]}-{100 * (1 - escalated_share):.0f}"
    while name in taken:
        name += "x"
    return name


def dominated(quality: Sequence[float], cost: Sequence[float]) -> list[int | None]:
    """For each point the index of one that beats it (no worse in both, better in one), the cheapest such; None = front.

    Of points equal in both the first stays.
    """
    found: list[int | None] = []
    for i, (q, c) in enumerate(zip(quality, cost, strict=True)):
        better = [
            j
            for j in range(len(quality))
            if j != i and quality[j] >= q and cost[j] <= c and (quality[j] > q or cost[j] < c or j < i)
        ]
        found.append(min(better, key=lambda j: (cost[j], -quality[j], j)) if better else None)
    return found


def mean_cost_over_floors(front: Sequence[Point], chosen: Collection[Point], full: Point) -> float:
    """Cost of answering at an accuracy floor, averaged over all floors between the front's worst and best quality.

    A floor is met by the cheapest chosen point that reaches it, and by full quality where none does.
    """
    floors = sorted({point.relative_accuracy_lower for point in front})
    total = 0.0
    for below, floor in itertools.pairwise(floors):
        able = [p.cpu_seconds_per_1k for p in chosen if p.relative_accuracy_lower >= floor]
        total += (floor - below) * min([full.cpu_seconds_per_1k, *able])
    return total / (floors[-1] - floors[0]) if len(floors) > 1 else full.cpu_seconds_per_1k


def spread(front: Sequence[Point], full: Point, at_most: int) -> list[Point]:
    """The points of the front worth publishing: single variants always, then cascades, `at_most` in all with `full`.

    Cascades are added one by one, each time the one that lowers `mean_cost_over_floors` the most.
    """
    chosen = [point for point in front if point.first is None and point != full]
    rest = [point for point in front if point.first is not None]
    while rest and len(chosen) + 1 < at_most:
        now = mean_cost_over_floors(front, chosen, full)
        best = min(rest, key=lambda point: mean_cost_over_floors(front, [*chosen, point], full))
        if mean_cost_over_floors(front, [*chosen, best], full) >= now:
            break
        chosen.append(best)
        rest.remove(best)
    return chosen


def choose(points: Sequence[Point], full_name: str, at_most: int) -> tuple[list[Point], dict[str, str]]:
    """What to judge on the test split beside full quality, and for every other point why it is left out.

    `points` as `rate` returns them; `full_name` is the variant of position 0, dearer than whatever is published.
    """
    full = next(point for point in points if point.name == full_name)
    why: dict[str, str] = {}
    affordable = [full]
    for point in points:
        if point == full:
            continue
        if point.cpu_seconds_per_1k >= full.cpu_seconds_per_1k:
            why[point.name] = f"costs no less than '{full_name}'"
        else:
            affordable.append(point)
    beaten = dominated([p.relative_accuracy_lower for p in affordable], [p.cpu_seconds_per_1k for p in affordable])
    for point, by in zip(affordable, beaten, strict=True):
        if by is not None and point != full:
            why[point.name] = f"not on the front: '{affordable[by].name}' is no dearer and no worse on validation texts"
    front = [point for point, by in zip(affordable, beaten, strict=True) if by is None]
    chosen = spread(front, full, at_most)
    for point in front:
        if point not in chosen and point != full:
            why[point.name] = f"on the front, but covered by the {at_most} points at most that are published"
    return chosen, why
