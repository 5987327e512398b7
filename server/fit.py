"""Which mode fits the rate that is served: Ray Serve, or one process without it (`jouleserve up --edge`).

Both run the same engine. Ray adds what it idles with and a hop through HAProxy, and gives replicas that are replaced
when they die, several replicas, and several machines. Pure, but for `FitWatch`, which asks once a minute.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from server.node.figures import Figures

RAY_IDLE_CPU_S_PER_MINUTE = 2.4
"""Whole tree at rest behind Ray Serve (2.6) less edge mode at rest (0.2), CPU-seconds a minute: measured side by side
on two cores (docs/standing.md)."""
RAY_CPU_S_PER_1000 = 0.4
"""HAProxy and Serve's part of a replica, CPU-seconds per 1,000 requests at 16 to 64 clients: 3.5 - 3.9 behind HAProxy
against 3.0 - 3.6 without Ray, same model and texts."""
SMALL_SHARE = 0.1
"""Below this share of the CPU time, Ray's part is no reason to change."""
FULL_SHARE = 0.8
"""Above this share of the machine's cores, one machine is about to be too small."""
PERIOD_S = 60.0
LEAST_S = 5.0
SETTLE_S = 2.0


@dataclass(frozen=True)
class Minute:
    """What a stretch of a minute or so brought."""

    requests_per_second: float
    cpu_seconds_per_minute: float


def ray_extra(minute: Minute) -> float:
    """CPU-seconds a minute that Ray adds at that rate."""
    return RAY_IDLE_CPU_S_PER_MINUTE + minute.requests_per_second * 60 / 1000 * RAY_CPU_S_PER_1000


def advice(minute: Minute, *, edge: bool, cores: int) -> str:
    """A line that says which mode fits what the busiest minute brought."""
    rate, spent = minute.requests_per_second, minute.cpu_seconds_per_minute
    served = f"served at most {rate:.1f} requests/s (mean of a minute)"
    if spent > FULL_SHARE * cores * 60:
        return f"{served} with {spent:.0f} CPU-seconds a minute: the machine is full; Ray Serve spreads over several"
    extra = ray_extra(minute)
    if edge:
        return f"{served}: edge mode fits; Ray Serve would have spent {extra:.1f} CPU-seconds a minute more"
    share = extra / spent if spent > 0 else 1.0
    figure = f"edge mode would have spent {extra:.1f} CPU-seconds a minute less ({min(share, 1):.0%})"
    if share < SMALL_SHARE:
        return f"{served}: Ray Serve fits; {figure}"
    return f"{served}: {figure}; `jouleserve up --edge` fits, unless a replica must be replaced when it dies"


class FitWatch:
    """Says what the start took; keeps the busiest minute, and says which mode fits: after the first minute with
    requests, and at the end."""

    def __init__(self, ask: Callable[[], Awaitable[Figures | None]], say: Callable[[str], None], *, edge: bool) -> None:
        """`ask` gives the node's figures, None where it cannot."""
        self._ask, self._say, self._edge = ask, say, edge
        self._cores = len(os.sched_getaffinity(0))
        self._before: tuple[float, Figures] | None = None
        self._busiest: Minute | None = None

    async def run(self) -> None:
        """Say what the start took, then watch until cancelled."""
        await asyncio.sleep(SETTLE_S)
        if line := startup_line(await self._ask()):
            self._say(line)
        while True:
            said = self._busiest is not None
            await self.look()
            if not said and self._busiest is not None:
                self.conclude()
            await asyncio.sleep(PERIOD_S)

    async def look(self) -> None:
        """Compare the figures with those of the last look."""
        now = asyncio.get_running_loop().time()
        figures = await self._ask()
        before, self._before = self._before, None if figures is None else (now, figures)
        if figures is None or before is None:
            return
        elapsed_s = now - before[0]
        requests, cpu_s = figures.requests - before[1].requests, figures.cpu_seconds - before[1].cpu_seconds
        if elapsed_s <= 0 or requests <= 0 or cpu_s < 0:
            return
        minute = Minute(requests / elapsed_s, cpu_s / elapsed_s * 60)
        if self._busiest is None or minute.requests_per_second > self._busiest.requests_per_second:
            self._busiest = minute

    async def end(self) -> None:
        """Look a last time, unless the last look was just now, and conclude."""
        if self._before is not None and asyncio.get_running_loop().time() - self._before[0] >= LEAST_S:
            await self.look()
        self.conclude()

    def conclude(self) -> None:
        """Say it, if there was anything."""
        if self._busiest is not None:
            self._say(advice(self._busiest, edge=self._edge, cores=self._cores))


def startup_line(figures: Figures | None) -> str | None:
    """What the start took; None where nobody knows."""
    if figures is None or figures.startup_cpu_seconds is None:
        return None
    joules = "" if figures.startup_joules is None else f", {figures.startup_joules:.0f} J above idling"
    return f"the start took {figures.startup_cpu_seconds:.1f} CPU-seconds{joules}"
