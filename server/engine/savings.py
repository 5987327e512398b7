"""What answering otherwise would have cost: the texts of a batch one by one, an int8 graph in full precision.

Both are read off what the compiler measured of the published variants. They feed counters of avoided joules, which are
estimates of what did not happen and are never subtracted from anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.manifest import LatencyCell, Manifest, Variant

_KEEP = 0.98
_NS_PER_MS = 1e6


def alone_ns_by_tokens(cells: Sequence[LatencyCell], max_tokens: int) -> list[float] | None:
    """CPU nanoseconds of a text that runs alone, by its tokens (0 to `max_tokens`); None where no such run was
    measured. Between the measured lengths by straight lines, beyond the longest in proportion."""
    alone = sorted((cell.tokens, cell.cpu_ms_per_text * _NS_PER_MS) for cell in cells if cell.rows == 1)
    if not alone:
        return None
    tokens, costs = zip(*alone, strict=True)
    lengths = np.arange(max_tokens + 1)
    found = np.interp(lengths, tokens, costs)
    beyond = lengths > tokens[-1]
    found[beyond] = costs[-1] * lengths[beyond] / tokens[-1]
    return [float(value) for value in found]


def quantized_saving(manifest: Manifest, variant: Variant) -> float:
    """How much more the variant would cost in full precision, as a share of what it costs; 0 if that was not measured.

    From the reference kept in fp32 and the quantized variant that has as many layers: shallower variants are taken to
    gain by the same factor.
    """
    if variant.precision == "fp32":
        return 0.0
    reference = next((one for one in manifest.variants if one.precision == "fp32"), None)
    if reference is None:
        return 0.0
    twin = next(
        (one for one in manifest.variants if one.precision == variant.precision and one.layers == reference.layers),
        None,
    )
    if twin is None:
        return 0.0
    return max(reference.evidence.cpu_seconds_per_1k / twin.evidence.cpu_seconds_per_1k - 1, 0.0)


class BatchingSavings:
    """CPU time that batches saved over running their texts one by one.

    The compiler's figures are those of its machine at its time; runs of a single text, which every server has when it
    is quiet, say how fast this one is now.
    """

    def __init__(self) -> None:
        """Takes this machine for as fast as the compiler's until a text ran alone."""
        self._ran_ns = 0.0
        self._predicted_ns = 0.0

    def saved_ns(self, rows: int, cpu_ns: int, alone_ns: float) -> int:
        """What a run of `rows` texts saved, below 0 if it cost some; `alone_ns` is what they take one by one by the
        compiler's figures, 0 if unknown."""
        if alone_ns <= 0:
            return 0
        if rows == 1:
            self._ran_ns = _KEEP * self._ran_ns + cpu_ns
            self._predicted_ns = _KEEP * self._predicted_ns + alone_ns
            return 0
        speed = self._ran_ns / self._predicted_ns if self._predicted_ns > 0 else 1.0
        return round(speed * alone_ns) - cpu_ns
