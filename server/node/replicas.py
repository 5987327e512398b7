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
_MAX_DATAGRAMS_A_TURN = 256
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
    gauges: Mapping[str, float] = field(default_factory=dict)
    exemplars: tuple[wire.Exemplar, ...] = ()


class Replicas:
    """Polls the replicas and hands their snapshots to the settlement."""

    def __init__(
        self,
        run_dir: Path,
        settlement: Settlement,
        adopt: Callable[[int, int, bool], bool],
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`adopt(pid, started_ticks, with_parent)` takes a process (and its parent's tree) into the serving tree, and
        says whether `/proc` shows that very process."""
        self._run_dir = run_dir
        self._sockets = wire.socket_dir(run_dir)
        self._path = wire.socket_path(run_dir)
        self._settlement = settlement
        self._adopt = adopt
        self._clock_s = clock_s
        self._socket: socket.socket | None = None
        self._poll_number = 0
        self._waiting: set[str] = set()
        self._complete: Callable[[], None] | None = None
        self.peers: dict[str, Peer] = {}
        self.answered: set[str] = set()
        """Instances whose answer to the latest poll is in."""

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind the node's socket; what an earlier node left there is replaced (the lock is ours). Raises OSError."""
        wire.own_socket_dir(self._run_dir)
        own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * wire.MAX_DATAGRAM_BYTES)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        own.bind(self._path)
        wire.share_socket(self._path)
        for path in self._sockets.glob(wire.REPLICA_SOCKETS):
            _knock(path)
        self._socket = own
        self._loop = loop
        loop.add_reader(own.fileno(), self._receive)

    def close(self) -> None:
        """Close the socket and take its file away."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            wire.drop_socket_dir(self._run_dir)

    def poll(
        self,
        joules_per_cpu_second: float | None,
        grams_per_kwh: float | None,
        sources: list[str],
        complete: Callable[[], None],
    ) -> bool:
        """Ask every replica for its figures; `complete` is called when the last answer is in.

        False if there is nobody to wait for; `complete` is not called then.
        """
        self._poll_number += 1
        self.answered = set()
        self._waiting = set()
        self._complete = complete
        for peer in list(self.peers.values()):
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
                self._waiting.add(peer.instance)
        return bool(self._waiting)

    def stop_waiting(self) -> None:
        """What comes after this is for the next tick."""
        self._complete = None

    def bury_dead(self, alive: Callable[[int, int], bool | None]) -> None:
        """Let go of replicas whose process ended; `alive` says None for a process that cannot be seen."""
        now_s = self._clock_s()
        for peer in list(self.peers.values()):
            state = alive(peer.pid, peer.started_ticks) if peer.visible else None
            if state is False or (state is None and now_s - peer.heard_s > FORGET_AFTER_SECONDS):
                log.info("replica %s (pid %d) is gone", peer.instance[:12], peer.pid)
                self._bury(peer, may_return=state is None)

    def _bury(self, peer: Peer, *, may_return: bool = False) -> None:
        self.peers.pop(peer.instance, None)
        self._waiting.discard(peer.instance)
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

    def _receive(self) -> None:
        for _ in range(_MAX_DATAGRAMS_A_TURN):
            if self._socket is None:
                return
            try:
                data, ancillary, _, address = self._socket.recvmsg(2 * wire.MAX_DATAGRAM_BYTES, _CREDENTIALS_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("%s: %s", self._path, error)
                return
            try:
                self._take(wire.unpack(data), address, _sender_pid(ancillary))
            except (wire.WireError, KeyError, TypeError) as error:
                self._settlement.totals.bad_records += 1
                log.warning("datagram from %r ignored: %r", address, error)

    def _take(self, message: Mapping[str, object], address: object, sender_pid: int | None) -> None:
        kind, instance = message["t"], message["id"]
        if not isinstance(instance, str) or not isinstance(address, str) or not address:
            raise wire.WireError("id: a replica must name itself and bind its socket to a path")
        if kind == "hello":
            self._welcome(instance, {**message, "pid": sender_pid or message["pid"]}, address)
            return
        peer = self.peers.get(instance)
        if peer is None:
            return
        peer.heard_s = self._clock_s()
        if (data := message.get("snap")) is not None:
            if not isinstance(data, bytes):
                raise wire.WireError("snap: not bytes")
            snapshot = wire.decode_snapshot(data)
            if snapshot.instance != instance:
                raise wire.WireError("snap: of another instance")
            self._settlement.replica(instance).receive(snapshot)
            peer.gauges, peer.exemplars = snapshot.gauges, snapshot.exemplars
        elif kind == "report":
            self._confirm(peer, message)
        if kind == "bye":
            self._bury(peer)
        if kind == "bye" or message.get("n") == self._poll_number:
            self.answered.add(instance)
            self._waiting.discard(instance)
            if not self._waiting and self._complete is not None:
                self._complete()

    def _confirm(self, peer: Peer, message: Mapping[str, object]) -> None:
        """Nothing changed since the snapshot that is known: settle that one again, at the cost of nothing."""
        account = self._settlement.replica(peer.instance)
        known = account.newest or account.settled
        if known is None or message.get("same") != known.revision:
            raise wire.WireError("same: a revision that was never seen here")
        account.newest = known
        gauges = message.get("gauge")
        if isinstance(gauges, dict):
            peer.gauges = {name: float(gauges[name]) for name in wire.GAUGES if name in gauges}

    def _welcome(self, instance: str, message: Mapping[str, object], address: str) -> None:
        pid, started = message["pid"], message["started"]
        if not isinstance(pid, int) or not isinstance(started, int):
            raise wire.WireError("hello: pid and started must be numbers")
        if instance not in self.peers and len(self.peers) >= MAX_REPLICAS:
            raise wire.WireError(f"hello: more than {MAX_REPLICAS} replicas on one node")
        if instance not in self.peers:
            log.info("replica %s (pid %d) is here", instance[:12], pid)
            self._settlement.replica(instance).gone = False
        visible = self._adopt(pid, started, message.get("parent") is True)
        account = self._settlement.replica(instance)
        account.visible = account.visible or visible
        self.peers[instance] = Peer(instance, pid, started, address, self._clock_s(), visible)


def _sender_pid(ancillary: Sequence[tuple[int, int, bytes]]) -> int | None:
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
