from __future__ import annotations

from types import SimpleNamespace

from energy.sources.fake import FakeSource
from energy.sources.nvml import NvmlSource
from server.node.devices import busy_by_replica
from tests.energy.test_sources import FakeNvml


def test_busy_time_goes_to_the_replica_of_the_process_and_the_rest_to_nobody() -> None:
    nvml = FakeNvml([1])
    nvml.samples[0] = [SimpleNamespace(pid=pid, timeStamp=10, smUtil=busy) for pid, busy in ((7, 40), (8, 5), (9, 15))]
    sources = (FakeSource(), NvmlSource(load=lambda: nvml))
    assert busy_by_replica(sources, {7: "replica"}) == {"gpu-0": {"replica": 40, "": 20}}


def test_without_a_gpu_there_is_nothing_to_split() -> None:
    assert busy_by_replica((FakeSource(),), {7: "replica"}) == {}
