"""Logits to scores. Plain Python: for the few dozen labels of one text numpy's calls cost more than their loops, and
each of them may hand the interpreter to a worker thread."""

from __future__ import annotations

from math import exp

from models.manifest import Manifest
from server.engine.runtime import Float32Array


def shown_scores(logits: Float32Array, manifest: Manifest, *, raw: bool) -> list[float]:
    """One text's scores in the labels' order: probabilities, or the logits where `raw` ones are asked for.

    A regression's one logit is its answer, in the unit of its training labels, and always shown as it is.
    """
    if raw or manifest.regression:
        row: list[float] = logits.tolist()
        return row
    return probabilities(logits)


def probabilities(logits: Float32Array) -> list[float]:
    """Softmax of one text's logits (shape [labels]), stable for large ones."""
    row: list[float] = logits.tolist()
    largest = max(row)
    powers = [exp(value - largest) for value in row]
    total = sum(powers)
    return [power / total for power in powers]


def confidence(logits: Float32Array, temperature: float) -> float:
    """The largest probability of `softmax(logits / temperature)` for one text's logits (shape [labels])."""
    row: list[float] = logits.tolist()
    largest = max(row)
    return 1.0 / sum([exp((value - largest) / temperature) for value in row])


def best_first(scores: list[float]) -> list[int]:
    """Indices by falling score; equal scores keep their order."""
    return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
