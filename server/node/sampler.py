"""What a tick reads: meters and processes. It is only read then, and made sense of when it is to be settled.

A process that wakes once a second finds its code and its data gone from the processor's caches, so whatever can wait is
done for several ticks at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from energy.domains import Reading
from energy.meter import Meter
from energy.procfs import CpuClock
from server.node.devices import busy_by_replica
from server.node.proctree import ServingTree
from server.node.replicas import Peer
from server.node.settle import MachineTick


@dataclass(slots=True)
class _Sample:
    readings: Sequence[Sequence[Reading]]
    busy_ns: int
    offered_ns: int
    serving_ns: int
    replica_ns: dict[str, int]
    device_busy: Mapping[str, Mapping[str, int]]


class Sampler:
    """Keeps what ticks read until it is taken."""

    def __init__(self, meter: Meter, clock: CpuClock, tree: ServingTree, *, clock_is_read: bool) -> None:
        """`clock_is_read` if reading the meters samples the clock, too."""
        self._meter = meter
        self._clock = clock
        self._tree = tree
        self._clock_is_read = clock_is_read
        self._samples: list[_Sample] = []
        self._busy_ns = self._offered_ns = 0

    def __len__(self) -> int:
        """Ticks that were read and not taken."""
        return len(self._samples)

    def read(self, peers: Collection[Peer], *, everybody: bool) -> None:
        """Read the meters, the replicas' processes and those of the driver, and with `everybody` all that serve."""
        readings, clock, tree = self._meter.read(), self._clock, self._tree
        if not self._clock_is_read:
            clock.sample()
        busy_ns, self._busy_ns = clock.busy_ns - self._busy_ns, clock.busy_ns
        offered_ns, self._offered_ns = clock.elapsed_ns - self._offered_ns, clock.elapsed_ns
        serving_ns = tree.sample(clock.forks, everybody=everybody)
        spent: dict[str, int] = {}
        for peer in peers:
            spent_ns = tree.spent_ns(peer.pid) if peer.visible else None
            if spent_ns is not None:
                spent[peer.instance] = spent_ns
        device_busy = busy_by_replica(self._meter.sources, {peer.pid: peer.instance for peer in peers})
        self._samples.append(_Sample(readings, busy_ns, offered_ns, serving_ns, spent, device_busy))

    def take(self) -> list[MachineTick]:
        """The ticks since the call before."""
        samples, self._samples = self._samples, []
        if samples:
            samples[-1].serving_ns += self._tree.catch_up()
        return [
            MachineTick(
                self._meter.judge(sample.readings),
                sample.busy_ns,
                sample.offered_ns,
                sample.serving_ns,
                sample.replica_ns,
                sample.device_busy,
            )
            for sample in samples
        ]
