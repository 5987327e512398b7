"""The node's side of the datagrams: who is there, polling all at once, taking in what they answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.node import wire
from server.node.settle import Settlement

log = logging.getLogger(__name__)

MAX_REPLICAS = 64
FORGET_AFTER_SECONDS = 10.0
"""A replica whose process cannot be seen is taken for dead after this long a silence."""
WARN_AGAIN_SECONDS = 60.0
_MAX_WARNINGS = 16
_MAX_DATAGRAMS_A_TURN = 256
_MAX_AT_THE_DOOR = 4 * MAX_REPLICAS
_FEW = 4
"""So many replicas' answers wait in the socket for a second or two."""
_HELD = 8
"""So many datagrams a socket holds in any case: 10 by default (net.unix.max_dgram_qlen)."""
_SOCKETS = (wire.NODE_SOCKET, wire.ANSWERS_SOCKET)
_BAD = (wire.WireError, KeyError, TypeError)
"""What reading a datagram that is not as it should be raises."""
_Ancillary = Sequence[tuple[int, int, bytes]]
_CREDENTIALS = struct.Struct("iII")
_CREDENTIALS_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size)


@dataclass
class Peer:
    """A replica process as the node's socket knows it."""

    instance: str
    pid: int
    started_ticks: int
    address: str
    heard_s: float
    """Monotone time of its last datagram."""
    visible: bool
    """True if `/proc` shows this very process, so that its CPU time can be seen."""
    unread: bytes | None = None
    """Its newest snapshot, if that was not decoded yet: figures are cumulative, so the ones before say nothing more."""
    gauges: Mapping[str, float] = field(default_factory=dict)
    exemplars: tuple[wire.Exemplar, ...] = ()


class Replicas:
    """Polls the replicas and hands their snapshots to the settlement.

    Who comes and goes is heard at once. The answers of a few replicas are left in a socket of their own until `receive`
    is called, every few ticks: a second wake-up a second would cost this process about a tenth of all that it does.
    More than a few are taken in as they come.
    """

    def __init__(
        self,
        run_dir: Path,
        settlement: Settlement,
        adopt: Callable[[int, int, bool], bool],
        *,
        patient: bool = False,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`adopt(pid, started_ticks, with_parent)` takes a process (and its parent's tree) into the serving tree, and
        says whether `/proc` shows that very process. `patient` if polls are a second or two apart, not more."""
        self._run_dir = run_dir
        self._sockets = wire.socket_dir(run_dir)
        self._settlement = settlement
        self._adopt = adopt
        self._clock_s = clock_s
        self._door_socket: socket.socket | None = None
        """Where replicas say hello and bye."""
        self._socket: socket.socket | None = None
        """From which they are polled, and where they answer."""
        self._lying = 0
        """Answers that may be in that socket."""
        self._poll_number = 0
        # One for all: a fresh one for every datagram would be pages fetched from the kernel and given back each time.
        self._buffer = bytearray(2 * wire.MAX_DATAGRAM_BYTES)
        self._listening = False
        self._patient = patient
        self._warned: set[str] = set()
        """Kinds of faults that were told of since the time that follows."""
        self._warned_since_s = float("-inf")
        self._door: list[tuple[Mapping[str, object], str]] = []
        """Who said hello or bye since the last poll, with the address."""
        self.waiting: set[str] = set()
        """Instances whose answer to the latest poll is not in."""
        self.peers: dict[str, Peer] = {}
        self.answered: set[str] = set()
        """Instances whose answer to the latest poll is in."""

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind the node's sockets; what an earlier node left there is replaced (the lock is ours). Raises OSError."""
        wire.own_socket_dir(self._run_dir)
        self._door_socket, self._socket = (_bound(wire.socket_path(self._run_dir, name)) for name in _SOCKETS)
        for path in self._sockets.glob(wire.REPLICA_SOCKETS):
            _knock(path)
        self._loop = loop
        loop.add_reader(self._door_socket.fileno(), self.receive)
        self._listen()

    def close(self) -> None:
        """Close the sockets and take their files away."""
        for own in (self._door_socket, self._socket):
            if own is not None:
                self._loop.remove_reader(own.fileno())
                path = own.getsockname()
                own.close()
                with contextlib.suppress(OSError):
                    os.unlink(path)
        wire.drop_socket_dir(self._run_dir)
        self._door_socket = self._socket = None

    def _listen(self) -> None:
        """Take datagrams in as they come, or leave them in the socket."""
        wanted = not self._patient or len(self.peers) > _FEW
        if self._socket is None or wanted == self._listening:
            return
        self._listening = wanted
        if wanted:
            self._loop.add_reader(self._socket.fileno(), self.receive)
        else:
            self._loop.remove_reader(self._socket.fileno())

    def poll(self, joules_per_cpu_second: float | None, grams_per_kwh: float | None, sources: list[str]) -> None:
        """Let in and out who is at the door, and ask every replica for its figures."""
        self.open_door()
        if self._lying + len(self.peers) > _HELD:
            self.receive()
        self._poll_number += 1
        self.answered = set()
        self.waiting = set()
        for peer in self.peers.values():
            known = self._settlement.replica(peer.instance)
            last = known.newest or known.settled
            message = {
                "v": wire.VERSION,
                "t": "poll",
                "n": self._poll_number,
                "seen": [peer.instance, last.revision] if last else None,
                "joules": joules_per_cpu_second,
                "loaded": self._settlement.loaded_ratio,
                "grams": grams_per_kwh,
                "sources": sources,
            }
            if self._send(message, peer):
                self.waiting.add(peer.instance)
        self._lying += len(self.waiting)

    def open_door(self) -> None:
        """Welcome who said hello, and let go of who said bye: with the open window, which has not been settled."""
        door, self._door = self._door, []
        for message, address in door:
            try:
                if message["t"] == "hello":
                    self._welcome(message, address)
                else:
                    self._part(message)
            except _BAD as error:
                self._count_bad(address, error)
        self._listen()

    def read_records(self) -> None:
        """Hand every replica's newest snapshot to the settlement; who sent one that cannot be read did not answer."""
        for peer in self.peers.values():
            self._read_record(peer)

    def _read_record(self, peer: Peer) -> None:
        data, peer.unread = peer.unread, None
        if data is None:
            return
        try:
            self._keep_snapshot(peer, data)
        except _BAD as error:
            self._count_bad(peer.address, error)
            self.answered.discard(peer.instance)
            self.waiting.add(peer.instance)

    def bury_dead(self, alive: Callable[[int, int], bool | None]) -> None:
        """Let go of replicas whose process ended; `alive` says None for a process that cannot be seen."""
        if self._dead(alive):
            # Their last words may not have been read yet.
            self.receive()
            self.open_door()
            for peer, may_return in self._dead(alive):
                log.info("replica %s (pid %d) is gone", peer.instance[:12], peer.pid)
                self._bury(peer, may_return=may_return)

    def _dead(self, alive: Callable[[int, int], bool | None]) -> list[tuple[Peer, bool]]:
        """Whose process ended or fell silent, and whether it may be heard of again."""
        now_s = self._clock_s()
        found = []
        for peer in self.peers.values():
            state = alive(peer.pid, peer.started_ticks) if peer.visible else None
            if state is False or (state is None and now_s - peer.heard_s > FORGET_AFTER_SECONDS):
                found.append((peer, state is None))
        return found

    def _bury(self, peer: Peer, *, may_return: bool = False) -> None:
        self._read_record(peer)
        self.peers.pop(peer.instance, None)
        self.waiting.discard(peer.instance)
        account = self._settlement.replica(peer.instance)
        account.gone, account.may_return = True, may_return
        address = Path(peer.address)
        if not may_return and address.parent == self._sockets and address.match(wire.REPLICA_SOCKETS):
            with contextlib.suppress(OSError):
                address.unlink()

    def _send(self, message: Mapping[str, object], peer: Peer) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.sendto(wire.pack(message), peer.address)
        except OSError as error:
            log.debug("poll of %s: %s", peer.address, error)
            return False
        return True

    def receive(self) -> None:
        """Take in what is in the sockets."""
        self._lying = 0
        for own in (self._socket, self._door_socket):
            if own is not None:
                self._receive_from(own)

    def _receive_from(self, own: socket.socket) -> None:
        for _ in range(_MAX_DATAGRAMS_A_TURN):
            try:
                size, ancillary, _, address = own.recvmsg_into((self._buffer,), _CREDENTIALS_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("%s: %s", own.getsockname(), error)
                return
            try:
                self._take(wire.unpack(memoryview(self._buffer)[:size]), address, ancillary)
            except _BAD as error:
                self._count_bad(address, error)

    def _count_bad(self, address: object, error: Exception) -> None:
        """Count a bad datagram and say what was wrong, each kind of fault at most once a minute: one sender alone could
        fill the disk with the log otherwise."""
        self._settlement.totals.bad_records += 1
        now_s = self._clock_s()
        if now_s - self._warned_since_s >= WARN_AGAIN_SECONDS:
            self._warned_since_s = now_s
            self._warned.clear()
        kind = f"{type(error).__name__} {error}".partition(":")[0]
        if kind not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(kind)
            log.warning(
                "datagram from %r ignored: %.200r (more like it in the next minute are only counted)", address, error
            )

    def _take(self, message: Mapping[str, object], address: object, ancillary: _Ancillary) -> None:
        kind, instance = message["t"], message["id"]
        if not isinstance(instance, str) or not isinstance(address, str) or not address:
            raise wire.WireError("id: a replica must name itself and bind its socket to a path")
        if kind in ("hello", "bye"):
            if len(self._door) < _MAX_AT_THE_DOOR:
                self._door.append(({**message, "pid": _sender_pid(ancillary) or message.get("pid")}, address))
            return
        peer = self.peers.get(instance)
        if peer is None:
            return
        peer.heard_s = self._clock_s()
        if message.get("snap") is not None:
            peer.unread = _bytes(message["snap"])
        elif kind == "report":
            self._confirm(peer, message)
        if message.get("n") == self._poll_number:
            self.answered.add(instance)
            self.waiting.discard(instance)

    def _keep_snapshot(self, peer: Peer, data: bytes) -> None:
        snapshot = wire.decode_snapshot(data)
        if snapshot.instance != peer.instance:
            raise wire.WireError("snap: of another instance")
        self._settlement.replica(peer.instance).receive(snapshot)
        peer.gauges, peer.exemplars = snapshot.gauges, snapshot.exemplars

    def _part(self, message: Mapping[str, object]) -> None:
        peer = self.peers.get(str(message["id"]))
        if peer is not None:
            peer.unread = _bytes(message["snap"])
            self._bury(peer)

    def _confirm(self, peer: Peer, message: Mapping[str, object]) -> None:
        """Nothing changed since the snapshot that is known: settle that one again, at the cost of nothing."""
        account = self._settlement.replica(peer.instance)
        known = account.newest or account.settled
        if known is None or message.get("same") != known.revision:
            raise wire.WireError("same: a revision that was never seen here")
        account.newest = known
        gauges = message.get("gauge")
        if isinstance(gauges, dict):
            peer.gauges = wire.decode_gauges(gauges)

    def _welcome(self, message: Mapping[str, object], address: str) -> None:
        instance, pid, started = str(message["id"]), message["pid"], message["started"]
        if not isinstance(pid, int) or not isinstance(started, int):
            raise wire.WireError("hello: pid and started must be numbers")
        if instance not in self.peers and len(self.peers) >= MAX_REPLICAS:
            raise wire.WireError(f"hello: more than {MAX_REPLICAS} replicas on one node")
        if (known := self.peers.get(instance)) is not None:
            self._read_record(known)
        else:
            log.info("replica %s (pid %d) is here", instance[:12], pid)
            self._settlement.replica(instance).gone = False
        visible = self._adopt(pid, started, message.get("parent") is True)
        account = self._settlement.replica(instance)
        account.visible = account.visible or visible
        self.peers[instance] = Peer(instance, pid, started, address, self._clock_s(), visible)


def _bound(path: str) -> socket.socket:
    """A socket at that path; what an earlier node left there is replaced (the lock is ours). Raises OSError."""
    own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * wire.MAX_DATAGRAM_BYTES)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    own.bind(path)
    wire.share_socket(path)
    return own


def _bytes(data: object) -> bytes:
    if not isinstance(data, bytes):
        raise wire.WireError("snap: not bytes")
    return data


def _sender_pid(ancillary: _Ancillary) -> int | None:
    """The sender's process id as this process would see it, by the kernel: the sender itself may live in a container
    and know another one. None if it is in no namespace below this process's."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(data) >= _CREDENTIALS.size:
            pid: int = _CREDENTIALS.unpack_from(data)[0]
            return pid or None
    return None


def _knock(path: Path) -> None:
    """Ask a replica that was here before this node to say hello; take the socket away if its owner is dead."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
            probe.send(wire.pack({"v": wire.VERSION, "t": "who"}))
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                path.unlink()
        except OSError as error:
            log.debug("%s: %s", path, error)
