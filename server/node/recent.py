"""The conservation law over the last five minutes: an error of today must not drown in the joules of a year. Pure."""

from __future__ import annotations

from collections import deque

from energy.ledger import Conservation

WINDOW_S = 300.0
STEP_S = 10.0


class RecentLaw:
    """Keeps a mark of the books every STEP_S, for WINDOW_S."""

    def __init__(self) -> None:
        """Nothing is known before the second mark."""
        self._marks: deque[tuple[float, Conservation]] = deque()
        self._now: Conservation | None = None

    def mark(self, time_s: float, books: Conservation) -> None:
        """Take the books at a monotone time."""
        self._now = books
        if not self._marks or time_s - self._marks[-1][0] >= STEP_S:
            self._marks.append((time_s, books))
        # The oldest mark that is kept is as old as the window, or as old as the process.
        while len(self._marks) > 1 and self._marks[1][0] <= time_s - WINDOW_S:
            self._marks.popleft()

    @property
    def error_ratio(self) -> float:
        """Joules lost or invented since the oldest mark, as a share of those measured since; 0 before any were."""
        if self._now is None or not self._marks:
            return 0.0
        return self._now.since(self._marks[0][1]).error_ratio
