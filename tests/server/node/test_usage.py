from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import usage as usage_module
from server.node import wire
from server.node.totals import increase
from server.node.wire import RequestKey
from server.usage import MAX_KEYS, OVERFLOW, NodeLink, Usage

LONG = "x" * 300


def test_a_snapshot_says_what_was_recorded() -> None:
    usage = Usage("intents")
    usage.request("full", "full", "strict", "ok", 1_500_000, total_ns=3_000_000, queue_ns=10, tokenize_ns=20)
    usage.request("full", "full", "strict", "ok", 2_500_000)
    usage.batch("full", 2, 30, 40, infer_ns=2_000_000, cpu_ns=1_900_000)
    usage.count("cache_hits", 3)
    usage.avoided("cache", 4_000_000)
    usage.gauges["queue_depth"] = lambda: 7
    found = wire.decode_snapshot(usage.snapshot())
    totals = found.requests[RequestKey("full", "full", "strict", "ok")]
    assert (totals.count, totals.cpu_ns, sum(totals.buckets.values())) == (2, 4_000_000, 2)
    assert found.counters == {"batches": 1, "rows": 2, "tokens": 30, "padded_tokens": 40, "cache_hits": 3}
    assert found.avoided_cpu_ns == {"cache": 4_000_000}
    assert found.gauges == {"queue_depth": 7.0}
    assert found.histograms["total"].total == 3_000_000
    assert found.histograms["batch_tokens"].total == 40
    assert found.batches == {wire.BatchKey("full", 1): wire.BatchTotals(2, 1_900_000)}
    assert found.cpu_ns == 4_000_000
    assert (found.instance, found.pid, found.revision) == (usage.instance, usage.pid, usage.revision)


def test_equal_revisions_mean_equal_figures() -> None:
    usage = Usage("intents")
    seen = {usage.revision}
    usage.request("full", "full", "eco", "ok", 5)
    seen.add(usage.revision)
    usage.batch("full", 1, 2, 3, infer_ns=4, cpu_ns=4)
    seen.add(usage.revision)
    usage.count("cache_misses")
    seen.add(usage.revision)
    usage.avoided("cache", 1)
    seen.add(usage.revision)
    assert len(seen) == 5


def test_a_snapshot_fits_a_datagram_whatever_labels_are_used() -> None:
    usage = Usage(LONG)
    for number in range(3 * MAX_KEYS):
        for quality in wire.QUALITIES:
            for outcome in wire.OUTCOMES:
                key = (f"{number}{LONG}", f"{number}{LONG}", quality, outcome)
                usage.request(*key, 1 << (number % 40))
        usage.batch(f"{number}{LONG}", 1 << (number % 14), 2**40, 2**40, infer_ns=2**40, cpu_ns=2**40)
    for totals in usage._requests.values():
        totals.count = totals.cpu_ns = 2**62
        totals.buckets = dict.fromkeys(range(wire.CPU_BUCKETS), 2**32 - 1)
    for name, histogram in usage._histograms.items():
        histogram.buckets = dict.fromkeys(range(len(wire.HISTOGRAMS[name]) + 1), 2**62)
    data = usage.snapshot()
    assert len(data) < wire.MAX_DATAGRAM_BYTES
    assert any(key.variant == OVERFLOW for key in wire.decode_snapshot(data).requests)


def test_requests_past_the_limit_of_keys_are_counted_under_other() -> None:
    usage = Usage("intents")
    for number in range(2 * MAX_KEYS):
        usage.request(f"v{number}", "p", "eco", "ok", 1)
    found = wire.decode_snapshot(usage.snapshot()).requests
    assert sum(totals.count for totals in found.values()) == 2 * MAX_KEYS
    assert found[RequestKey(OVERFLOW, OVERFLOW, "eco", "ok")].count == MAX_KEYS


def test_an_unknown_class_outcome_counter_or_a_negative_time_is_refused() -> None:
    usage = Usage("intents")
    with pytest.raises(ValueError, match="quality"):
        usage.request("v", "p", "gold", "ok", 1)
    with pytest.raises(ValueError, match="outcome"):
        usage.request("v", "p", "eco", "lost", 1)
    with pytest.raises(ValueError, match="cpu_ns"):
        usage.request("v", "p", "eco", "ok", -1)
    with pytest.raises(KeyError):
        usage.count("cache_evictions")
    with pytest.raises(ValueError, match="grow"):
        usage.count("cache_hits", -1)
    assert all(totals.count == 0 for totals in wire.decode_snapshot(usage.snapshot()).requests.values())


@given(st.integers(1, 2**37))
def test_a_cpu_time_falls_into_a_bucket_whose_middle_is_near(cpu_ns: int) -> None:
    index = wire.cpu_bucket(cpu_ns)
    assert 0 <= index < wire.CPU_BUCKETS
    if 2**13 <= cpu_ns < 2**37:
        assert abs(wire.cpu_bucket_middle_ns(index) - cpu_ns) <= cpu_ns * 0.125
        assert wire.cpu_bucket(wire.cpu_bucket_middle_ns(index)) == index
    assert wire.cpu_bucket(cpu_ns) <= wire.cpu_bucket(cpu_ns + 1)


def test_the_increase_between_two_snapshots_never_is_negative() -> None:
    usage = Usage("intents")
    usage.request("full", "full", "eco", "ok", 5000)
    first = wire.decode_snapshot(usage.snapshot())
    usage.request("full", "full", "eco", "ok", 7000)
    usage.batch("full", 1, 2, 3, infer_ns=4, cpu_ns=4)
    second = wire.decode_snapshot(usage.snapshot())
    forth = increase(second, first)
    assert [(t.count, t.cpu_ns) for t in forth.requests.values()] == [(1, 7000)]
    assert forth.counters["batches"] == 1
    back = increase(first, second)
    assert back.cpu_ns == 0
    assert back.counters == {}


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x80", wire.pack({"v": 99}), wire.pack({"v": 1, "id": 5}), wire.pack([1])],
)
def test_nonsense_is_refused_with_a_wire_error(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode_snapshot(data)


def absurd(field: str, value: object) -> bytes:
    """A snapshot of which one field is what no process counts."""
    tree = wire.unpack(Usage("intents").snapshot())
    return wire.pack({**tree, field: value})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("req", [["full", "full", "eco", "ok", 1, 7, {10**6: 1}]], "req: 1000000"),
        ("req", [["full", "full", "eco", "ok", 1, 7, {3: 2**63}]], "req: 3 to"),
        ("req", [["full", "full", "eco", "ok", 1, 2**64 - 1, {}]], "cpu_ns"),
        ("req", [["full", "full", "eco", "ok", -1, 7, {}]], "count"),
        ("hist", {"total": [1, 1, {len(wire.DURATION_BOUNDS_NS) + 1: 1}]}, "total: 17"),
        ("cnt", {"rows": 2**63}, "cnt.rows"),
        ("avoid", {"cache": -1}, "avoid.cache"),
        ("gauge", {"queue_depth": float("nan")}, "gauge.queue_depth"),
        ("gauge", {"queue_depth": "many"}, "gauge.queue_depth"),
        ("ex", [["0" * 32, "full", "eco", 1, 1, float("inf")]], "ex: inf"),
    ],
)
def test_a_record_with_a_number_that_no_process_counts_is_refused_whole(field: str, value: object, said: str) -> None:
    with pytest.raises(wire.WireError, match=said):
        wire.decode_snapshot(absurd(field, value))


@given(st.binary(max_size=300))
def test_no_bytes_whatever_raise_anything_else(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode_snapshot(data)


@pytest.fixture
def node_socket(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as node:
        node.bind(str(tmp_path / wire.NODE_SOCKET))
        yield node


async def hear(node: socket.socket) -> tuple[dict[str, object], str]:
    """The next message; bounded."""
    for _ in range(500):
        try:
            data, address = node.recvfrom(200_000)
        except BlockingIOError:
            await asyncio.sleep(0.01)
        else:
            return wire.unpack(data), address
    raise AssertionError("nothing was said within 5 s")


def sockets_in(folder: Path) -> list[Path]:
    return list(folder.glob("*.sock"))


def poll(number: int, seen: object = None, joules: float | None = 2.5) -> bytes:
    message = {"v": 1, "t": "poll", "n": number, "seen": seen, "joules": joules, "grams": 100, "sources": ["rapl"]}
    return wire.pack(message)


async def test_a_replica_says_hello_answers_polls_and_says_goodbye(tmp_path: Path, node_socket: socket.socket) -> None:
    usage = Usage("intents")
    link = NodeLink(tmp_path, usage)
    await link.start()
    hello, address = await hear(node_socket)
    assert (hello["t"], hello["id"], hello["pid"]) == ("hello", usage.instance, usage.pid)
    assert link.joules_per_cpu_second is None

    usage.request("full", "full", "eco", "ok", 5000)
    node_socket.sendto(poll(1), address)
    report, _ = await hear(node_socket)
    assert (report["t"], report["n"]) == ("report", 1)
    assert isinstance(report["snap"], bytes)
    assert wire.decode_snapshot(report["snap"]).cpu_ns == 5000
    assert (link.joules_per_cpu_second, link.grams_per_kwh, link.sources) == (2.5, 100.0, ("rapl",))

    node_socket.sendto(poll(2, [usage.instance, usage.revision]), address)
    report, _ = await hear(node_socket)
    assert report["same"] == usage.revision
    assert "snap" not in report

    usage.request("full", "full", "eco", "ok", 6000)
    await link.close()
    bye, _ = await hear(node_socket)
    assert bye["t"] == "bye"
    assert isinstance(bye["snap"], bytes)
    assert wire.decode_snapshot(bye["snap"]).cpu_ns == 11000
    assert address not in map(str, sockets_in(tmp_path))
    assert link.joules_per_cpu_second is None


async def test_the_rate_is_forgotten_and_hello_said_again_when_the_node_falls_silent(
    tmp_path: Path, node_socket: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_module, "_HELLO_SECONDS", 0.02)
    monkeypatch.setattr(usage_module, "_SILENT_AFTER_SECONDS", 0.05)
    link = NodeLink(tmp_path, Usage("intents"))
    await link.start()
    _, address = await hear(node_socket)
    node_socket.sendto(poll(1), address)
    while (await hear(node_socket))[0]["t"] != "report":
        pass
    assert (await hear(node_socket))[0]["t"] == "hello"
    assert link.joules_per_cpu_second is None
    await link.close()


async def test_without_a_node_or_even_a_folder_serving_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_module, "_HELLO_SECONDS", 0.01)
    folder = tmp_path / "later"
    link = NodeLink(folder, Usage("intents"))
    await link.start()
    assert link.joules_per_cpu_second is None
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as node:
        node.bind(str(folder / wire.NODE_SOCKET))
        assert (await hear(node))[0]["t"] == "hello"
    await link.close()


async def test_a_garbled_poll_is_survived(tmp_path: Path, node_socket: socket.socket) -> None:
    link = NodeLink(tmp_path, Usage("intents"))
    await link.start()
    _, address = await hear(node_socket)
    node_socket.sendto(b"\xc1\xc1", address)
    node_socket.sendto(wire.pack({"v": 1, "t": "poll"}), address)
    node_socket.sendto(poll(9), address)
    assert (await hear(node_socket))[0]["n"] == 9
    await link.close()


def test_savings_that_cost_something_are_made_up_for_before_the_figure_grows() -> None:
    usage = Usage("intents")
    for amount in (100, -30, 20, 40):
        usage.avoided("batching", amount)
    assert wire.decode_snapshot(usage.snapshot()).avoided_cpu_ns == {"batching": 130}


def test_the_newest_traced_request_of_each_duration_travels_with_the_figures() -> None:
    usage = Usage("intents")
    for trace, total_ns in (("a" * 32, 4_000_000), ("b" * 32, 4_500_000), ("c" * 32, 40_000_000)):
        usage.traced(trace, "full", "eco", total_ns, 1_000_000)
    found = wire.decode_snapshot(usage.snapshot()).exemplars
    assert [exemplar.trace_id[0] for exemplar in found] == ["b", "c"]
    assert {exemplar.quality for exemplar in found} == {"eco"}


def test_batches_are_kept_apart_by_variant_and_size() -> None:
    usage = Usage("intents")
    for variant, rows in (("full", 1), ("full", 5), ("full", 8), ("nano", 8), ("full", 9000)):
        usage.batch(variant, rows, rows, rows, infer_ns=10, cpu_ns=rows)
    before = wire.decode_snapshot(usage.snapshot())
    tops = {(key.variant, key.size): totals.texts for key, totals in before.batches.items()}
    assert tops == {("full", 0): 1, ("full", 3): 13, ("nano", 3): 8, ("full", len(wire.BATCH_BOUNDS)): 9000}
    usage.batch("nano", 7, 7, 7, infer_ns=10, cpu_ns=3)
    grown = increase(wire.decode_snapshot(usage.snapshot()), before).batches
    assert grown[wire.BatchKey("nano", 3)] == wire.BatchTotals(7, 3)
    assert sum(totals.texts for totals in grown.values()) == 7


def test_what_a_release_kept_that_knew_neither_classes_of_traces_nor_sizes_of_batches_is_read() -> None:
    usage = Usage("intents")
    usage.traced("a" * 32, "full", "eco", 4_000_000, 1_000_000)
    usage.batch("full", 1, 2, 3, infer_ns=4, cpu_ns=5)
    tree = wire.unpack(usage.snapshot())
    del tree["bat"]
    tree["ex"] = [[row[0], row[1], *row[3:]] for row in tree["ex"]]
    found = wire.decode_snapshot(wire.pack(tree))
    assert (found.batches, found.exemplars) == ({}, ())
    assert found.counters["batches"] == 1
