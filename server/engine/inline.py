"""Whether a lone job is run on the event loop itself. Pure state.

Waking a worker and being woken by it costs as much CPU as a tenth of a short run (measured with one client; more on
virtual machines, where a wake is a trap to the host), so that a job which nobody else waits beside is cheaper where it
is. It holds the loop up: a request that comes meanwhile waits, and half the cores idle. So whenever somebody did come
during such a run, the next ones are left to the workers, twice as many each time in a row.
"""

from __future__ import annotations

MOST_LEFT = 64


class Inline:
    """Remembers whether running on the loop kept others waiting."""

    def __init__(self) -> None:
        self._left = 0
        self._next = 2

    def allows(self) -> bool:
        """Ask once for each lone job: whether it may run on the loop."""
        if self._left:
            self._left -= 1
            return False
        return True

    def ran(self, *, crowded: bool) -> None:
        """A job ran on the loop, and somebody came meanwhile or nobody did."""
        if crowded:
            self._left = self._next
            self._next = min(2 * self._next, MOST_LEFT)
        else:
            self._next = 2
