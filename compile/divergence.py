"""How far a smaller model's answers lie from the whole one's, and which layers could stay. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Kept = tuple[int, ...]
Score = Callable[[Kept], float]
"""Layers that stay -> divergence."""
_NEAR_STANDARD_DEVIATIONS = 0.05


@dataclass(frozen=True)
class Candidate:
    """Layers that could stay, how they were found, and how far the answers then are."""

    choice: str
    layers: Kept
    divergence: float


def divergence(teacher: Floats, student: Floats, temperature: float) -> float:
    """Mean over rows of KL(teacher || student) in nats, of softmax(logits / temperature); both [rows, labels].

    With one output (regression): mean squared difference over the teacher's variance. Infinite where the student's
    figures are not finite.
    """
    if not np.isfinite(student).all():
        return float("inf")
    if teacher.shape[1] == 1:
        spread = float(np.square(teacher - teacher.mean(), dtype=np.float64).mean()) or 1.0
        return float(np.square(teacher - student, dtype=np.float64).mean() / spread)
    wanted, made = (_log_softmax(logits / temperature) for logits in (teacher, student))
    return float(max(0.0, (np.exp(wanted) * (wanted - made)).sum(axis=1).mean()))


def agreement(expected: Floats, made: Floats) -> float:
    """Share of rows whose logits [rows, labels] choose the same label.

    With one output (regression): share of rows within a twentieth of the expected answers' standard deviation.
    """
    if expected.shape[1] == 1:
        return float((np.abs(made - expected) <= _NEAR_STANDARD_DEVIATIONS * expected.std()).mean())
    return float((made.argmax(-1) == expected.argmax(-1)).mean())


def top_dropped(have: int, keep: int) -> Kept:
    """The first `keep` of `have` layers."""
    return tuple(range(keep))


def evenly_spaced(have: int, keep: int) -> Kept:
    """`keep` of `have` layers at even distances, the last one among them (half of them: every second one)."""
    return tuple((at + 1) * have // keep - 1 for at in range(keep))


def greedily(have: int, keep: int, score: Score) -> Kept:
    """Drop one layer after another, each time the one without which `score` is least (of equals, the later one)."""
    kept: Kept = tuple(range(have))
    while len(kept) > keep:
        shorter = [(score(left), -gone, left) for gone in kept for left in [tuple(i for i in kept if i != gone)]]
        kept = min(shorter)[2]
    return kept


def candidates(have: int, keep: int, choices: Sequence[str], score: Score) -> list[Candidate]:
    """What each of the choices (`top`, `alternate`, `greedy`) comes to, in the order given."""
    seen: dict[Kept, float] = {}

    def once(kept: Kept) -> float:
        if kept not in seen:
            seen[kept] = score(kept)
        return seen[kept]

    ways: dict[str, Callable[[], Kept]] = {
        "top": lambda: top_dropped(have, keep),
        "alternate": lambda: evenly_spaced(have, keep),
        "greedy": lambda: greedily(have, keep, once),
    }
    return [Candidate(choice, kept, once(kept)) for choice in choices for kept in [ways[choice]()]]


def evaluations(have: int, keep: int, choices: Sequence[str]) -> int:
    """How many times `candidates` scores at most."""
    greedy = sum(range(keep + 1, have + 1)) if "greedy" in choices else 0
    return greedy + sum(choice != "greedy" for choice in choices)


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    made: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return made
