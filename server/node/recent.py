"""The conservation law over the last five minutes: an error of today must not drown in the joules of a year. Pure."""

from __future__ import annotations

from collections import deque

from energy.ledger import Conservation

WINDOW_S = 300.0
STEP_S = 10.0


class RecentLaw:
    """Keeps a mark of the books every STEP_S, for WINDOW_S."""

    def __init__(self) -> None:
        """Nothing is known before the first mark."""
        self._marks: deque[tuple[float, Conservation]] = deque()

    def due(self, time_s: float) -> bool:
        """Whether a mark is wanted at this monotone time."""
        return not self._marks or time_s - self._marks[-1][0] >= STEP_S

    def mark(self, time_s: float, books: Conservation) -> None:
        """Remember the books."""
        self._marks.append((time_s, books))
        # The oldest mark that is kept is as old as the window, or as old as the process.
        while len(self._marks) > 1 and self._marks[1][0] <= time_s - WINDOW_S:
            self._marks.popleft()

    def error_ratio(self, now: Conservation) -> float:
        """Joules lost or invented since the oldest mark, as a share of those measured since; 0 before any were."""
        return now.since(self._marks[0][1]).error_ratio if self._marks else 0.0
