"""Logits to scores."""

from __future__ import annotations

import numpy as np

from server.engine.runtime import Float32Array


def softmax(logits: Float32Array) -> Float32Array:
    """Probabilities over the last axis (float32, same shape), stable for large logits."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Float32Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities
