"""Ticks that are made sense of later say what they would have said at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.domains import Domain
from energy.meter import Meter
from energy.procfs import CpuClock
from energy.sources.fake import FakeSource
from server.node.proctree import ServingTree
from server.node.replicas import Peer
from server.node.sampler import Sampler
from server.node.settle import MachineTick
from tests.energy.trees import Clock, FakeProc

PACKAGE = Domain("package", "package-0", "fake", wraps_at_uj=60_000_000, max_watts=25.0, never_rests=True)
MS = 1_000_000


class Machine:
    """A driver (10), a replica below it (11) and another process of the server (12), under a counter."""

    def __init__(self, folder: Path) -> None:
        self.proc = FakeProc(folder)
        self.proc.process(10, 1, session=10)
        self.proc.process(11, 10, session=10)
        self.proc.process(12, 10, session=10)
        self.clock = Clock()
        self.source = FakeSource([PACKAGE], clock_ns=self.clock)
        tree = ServingTree((10, 11), self.proc.root, discover_samples=1)
        self.sampler = Sampler(Meter([self.source]), CpuClock(self.proc.root, self.clock), tree, clock_is_read=False)
        self.peers = [Peer("one", 11, 7, "nowhere", 0.0, visible=True)]
        self.read()
        self.sampler.take()

    def second(self, joules: float, replica_ticks: int, other_ticks: int, *, everybody: bool) -> None:
        """A second in which the replica and the other process come to have spent so many clock ticks."""
        self.clock.pass_seconds(1.0)
        self.source.add(PACKAGE, joules)
        self.proc.process(11, 10, session=10, own=replica_ticks)
        self.proc.process(12, 10, session=10, own=other_ticks)
        self.read(everybody=everybody)

    def read(self, *, everybody: bool = True) -> None:
        self.sampler.read(self.peers, everybody=everybody)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_the_meters_say_the_same_of_ticks_that_are_taken_together(
    tmp_path_factory: pytest.TempPathFactory, joules: list[float]
) -> None:
    """Wraps, a counter that stands still and jumps among them."""
    apart, together = (Machine(tmp_path_factory.mktemp("proc")) for _ in range(2))
    found: list[MachineTick] = []
    for number, drawn in enumerate(joules):
        for machine in (apart, together):
            machine.second(drawn, number, number, everybody=True)
        found += apart.sampler.take()
    assert together.sampler.take() == found


def test_processes_that_ticks_left_out_are_in_the_last_one(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for number in (1, 2, 3):
        machine.second(10.0, 10 * number, 5 * number, everybody=False)
    assert len(machine.sampler) == 3
    ticks = machine.sampler.take()
    assert [tick.serving_cpu_ns for tick in ticks] == [100 * MS, 100 * MS, 250 * MS]
    assert [tick.replica_cpu_ns for tick in ticks] == [{"one": 100 * MS}] * 3
    assert len(machine.sampler) == 0
    assert machine.sampler.take() == []
