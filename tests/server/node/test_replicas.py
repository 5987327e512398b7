"""The node's side of the socket with a replica's real link, in one loop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from energy.coefficients import CpuCoefficients
from energy.idle import IdleModel
from energy.ledger import Ledger
from server.node import wire
from server.node.replicas import Replicas
from server.node.settle import Settlement
from server.node.totals import ServingTotals
from server.usage import NodeLink, Usage


async def until(replicas: Replicas, holds: Callable[[], object]) -> None:
    for _ in range(500):
        replicas.receive()
        replicas.open_door()
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 5 s")


def fresh_books() -> Settlement:
    return Settlement(Ledger(), ServingTotals(), IdleModel.fresh(CpuCoefficients("test", 1.0, 3.0, "none")), 2.0)


@pytest.mark.parametrize("visible", [True, False])
async def test_a_replica_that_left_is_still_known_to_be_visible_or_not(tmp_path: Path, visible: bool) -> None:
    books = fresh_books()
    replicas = Replicas(tmp_path, books, lambda pid, started, with_parent: visible)
    usage = Usage("intents")
    link = NodeLink(tmp_path, usage)
    replicas.open(asyncio.get_running_loop())
    try:
        await link.start()
        await until(replicas, lambda: replicas.peers)
        usage.request("full", "full", "eco", "ok", 7000)
        await link.close()
        await until(replicas, lambda: not replicas.peers)
        account = books.replicas[usage.instance]
        assert (account.gone, account.visible) == (True, visible)
        assert account.newest is not None
        assert account.newest.cpu_ns == 7000
    finally:
        replicas.close()


async def test_a_replica_without_a_driver_brings_its_parent_along(tmp_path: Path) -> None:
    books = fresh_books()
    adopted: set[tuple[int, bool]] = set()

    def adopt(pid: int, started: int, with_parent: bool) -> bool:
        adopted.add((pid, with_parent))
        return True

    replicas = Replicas(tmp_path, books, adopt)
    alone, driven = (NodeLink(tmp_path, Usage("intents"), parent_is_root=root) for root in (True, False))
    replicas.open(asyncio.get_running_loop())
    try:
        await alone.start()
        await driven.start()
        await until(replicas, lambda: len(replicas.peers) == 2)
        assert adopted == {(os.getpid(), True), (os.getpid(), False)}
    finally:
        await alone.close()
        await driven.close()
        replicas.close()


@pytest.mark.parametrize(("folder_mode", "shared"), [(0o2770, True), (0o700, False)])
async def test_sockets_are_the_groups_where_the_folder_is(tmp_path: Path, folder_mode: int, shared: bool) -> None:
    """A node process that runs apart is another user's: each must be able to send to the other."""
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(folder_mode)
    books = fresh_books()
    replicas = Replicas(folder, books, lambda pid, started, with_parent: True)
    link = NodeLink(folder, Usage("intents"))
    replicas.open(asyncio.get_running_loop())
    try:
        await link.start()
        modes = {path.stat().st_mode & 0o777 for path in folder.glob("*.sock")}
        assert len(list(folder.glob("*.sock"))) == 3
        assert (modes == {0o660}) is shared
    finally:
        await link.close()
        replicas.close()


@pytest.mark.parametrize(("count", "at_once"), [(2, False), (8, True)])
async def test_answers_of_a_few_wait_in_the_socket_and_those_of_many_are_taken_in_at_once(
    tmp_path: Path, count: int, at_once: bool
) -> None:
    """A socket holds ten datagrams on many machines: more would be lost while nobody looks."""
    books = fresh_books()
    replicas = Replicas(tmp_path, books, lambda pid, started, with_parent: True, patient=True)
    links = [NodeLink(tmp_path, Usage("intents")) for _ in range(count)]
    replicas.open(asyncio.get_running_loop())
    try:
        for link in links:
            await link.start()
        await until(replicas, lambda: len(replicas.peers) == count)
        replicas.poll(3.0, None, ["rapl"])
        for _ in range(100):
            if all(link.joules_per_cpu_second for link in links):
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        assert (not replicas.waiting) is at_once
        replicas.receive()
        assert not replicas.waiting
        assert len(replicas.answered) == count
    finally:
        for link in links:
            await link.close()
        replicas.close()


def asked(folder: Path, books: Settlement) -> Replicas:
    """Replicas that are polled by hand."""
    return Replicas(folder, books, lambda pid, started, with_parent: True, patient=True)


async def test_of_several_answers_the_newest_counts_and_the_ones_before_are_not_even_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = fresh_books()
    replicas, usage = asked(tmp_path, books), Usage("intents")
    link, decoded = NodeLink(tmp_path, usage), list[bytes]()
    decode = wire.decode_snapshot
    monkeypatch.setattr(wire, "decode_snapshot", lambda data: decode(decoded.append(data) or data))
    replicas.open(asyncio.get_running_loop())
    try:
        await link.start()
        await until(replicas, lambda: replicas.peers)
        for _ in range(5):
            usage.request("full", "full", "eco", "ok", 1000)
            replicas.poll(3.0, None, ["rapl"])
            await asyncio.sleep(0.02)
        replicas.receive()
        replicas.read_records()
        assert replicas.answered == {usage.instance}
        account = books.replica(usage.instance)
        assert account.newest is not None
        assert account.newest.cpu_ns == 5000
        assert len(decoded) == 1
    finally:
        await link.close()
        replicas.close()


async def test_what_a_replica_said_last_is_read_before_it_is_let_go(tmp_path: Path) -> None:
    books = fresh_books()
    replicas, usage = asked(tmp_path, books), Usage("intents")
    link = NodeLink(tmp_path, usage)
    replicas.open(asyncio.get_running_loop())
    try:
        await link.start()
        await until(replicas, lambda: replicas.peers)
        usage.request("full", "full", "eco", "ok", 7000)
        replicas.poll(3.0, None, ["rapl"])
        await asyncio.sleep(0.05)
        replicas.bury_dead(lambda pid, started: False)
        assert replicas.peers == {}
        account = books.replica(usage.instance)
        assert account.gone
        assert account.newest is not None
        assert account.newest.cpu_ns == 7000
    finally:
        await link.close()
        replicas.close()


async def test_who_sent_a_record_that_cannot_be_read_did_not_answer(tmp_path: Path) -> None:
    books = fresh_books()
    replicas = asked(tmp_path, books)
    replicas.open(asyncio.get_running_loop())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as broken:
            broken.bind(str(tmp_path / "r-broken.sock"))
            broken.settimeout(5)
            hello = {"v": wire.VERSION, "t": "hello", "id": "broken", "pid": os.getpid(), "started": 1}
            broken.sendto(wire.pack(hello), wire.socket_path(tmp_path))
            await until(replicas, lambda: replicas.peers)
            replicas.poll(3.0, None, ["rapl"])
            poll, asker = broken.recvfrom(wire.MAX_DATAGRAM_BYTES)
            report = {"v": wire.VERSION, "t": "report", "id": "broken", "n": wire.unpack(poll)["n"], "snap": b"\xc1"}
            broken.sendto(wire.pack(report), asker)
        replicas.receive()
        assert replicas.answered == {"broken"}
        replicas.read_records()
        assert (replicas.answered, replicas.waiting) == (set(), {"broken"})
        assert books.totals.bad_records == 1
    finally:
        replicas.close()


async def test_each_kind_of_bad_datagram_is_told_of_once_a_minute_and_all_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    books = fresh_books()
    now_s = 0.0
    replicas = Replicas(tmp_path, books, lambda pid, started, with_parent: True, clock_s=lambda: now_s)
    replicas.open(asyncio.get_running_loop())

    def send(*datagrams: bytes) -> int:
        caplog.clear()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for datagram in datagrams:
                sender.sendto(datagram, wire.socket_path(tmp_path))
                replicas.receive()
        return len([one for one in caplog.records if "ignored" in one.message])

    nameless = wire.pack({"v": wire.VERSION, "t": "hello", "id": 7})
    try:
        assert send(*[b"\xc1"] * 20, *[nameless] * 20) == 2
        now_s = 59.0
        assert send(nameless) == 0
        now_s = 60.0
        assert send(nameless, nameless) == 1
        assert send(*(wire.pack({"v": wire.VERSION, f"{number}": 1}) for number in range(100))) <= 15
        assert books.totals.bad_records == 143
    finally:
        replicas.close()
