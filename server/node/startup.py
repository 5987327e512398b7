"""What starting the server took: the serving tree's CPU time when its first replica was there, and its joules."""

from __future__ import annotations

from energy.domains import NANOSECONDS_PER_SECOND
from server.node.proctree import ServingTree

RESTARTED_AFTER_S = 60.0


class StartUp:
    """Looks at every tick until the first replica says hello, which it does when it is warm; then its figures stay.

    A node process that was restarted in the middle of a run has no figures: it did not see the start.
    """

    def __init__(self, root_age_s: float) -> None:
        """`root_age_s` is how long the driver had lived when the node process began."""
        self._open = root_age_s < RESTARTED_AFTER_S
        self.cpu_seconds: float | None = None
        """CPU time of the whole tree, the driver's imports included; processes that ended count if they were reaped."""
        self.joules: float | None = None
        """What that CPU time added to idling, at the rate then in force."""

    def look(self, replicas: int, tree: ServingTree, joules_per_cpu_second: float | None) -> None:
        """Take the figures once a replica is there, and the joules once their rate is known."""
        if self._open and replicas:
            self._open = False
            self.cpu_seconds = tree.lifetime_ns() / NANOSECONDS_PER_SECOND
        if self.cpu_seconds is not None and self.joules is None and joules_per_cpu_second is not None:
            self.joules = self.cpu_seconds * joules_per_cpu_second
