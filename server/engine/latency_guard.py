"""The 99th percentile of a class, watched: while it is over its bound, no cascade answers the class.

A cascade is the one operating point that can be slower than full quality: its unsure texts wait for two batches. Pure
but for the numbers that it is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from server.shaping.policy import QualityClass

WINDOW = 300
"""Answers that the percentile is of."""
LEAST = 100
ALLOWED_SHARE = 0.01
HOLD_NS = 60_000_000_000
"""How long a class keeps to single variants then, before cascades are tried again."""


class LatencyGuard:
    """Used from one event loop. Times are nanoseconds of one monotone clock."""

    def __init__(self, bounds_ns: Mapping[QualityClass, int]) -> None:
        """`bounds_ns`: by class; a class without one is not watched."""
        self.bounds_ns = dict(bounds_ns)
        self._slow: dict[QualityClass, deque[bool]] = {}
        self._until_ns: dict[QualityClass, int] = {}

    def note(self, quality: QualityClass, total_ns: int, now_ns: int) -> None:
        """One text of the class was answered after `total_ns`."""
        bound_ns = self.bounds_ns.get(quality)
        if bound_ns is None:
            return
        window = self._slow.setdefault(quality, deque(maxlen=WINDOW))
        window.append(total_ns > bound_ns)
        if len(window) >= LEAST and sum(window) > ALLOWED_SHARE * len(window) + 1:
            self._until_ns[quality] = now_ns + HOLD_NS
            window.clear()

    def engaged(self, quality: QualityClass, now_ns: int) -> bool:
        """Whether the class is to be answered without cascades now."""
        return quality in self.bounds_ns and now_ns < self._until_ns.get(quality, 0)
