"""What a replica says about itself: cumulative counters of one process, and the link that hands them to the
node.

`Usage` is written from one event loop and takes no locks. Work done in threads (inference) is recorded by
the loop when the result arrives. `NodeLink` answers the node process's polls; without a node, serving goes
on and the link's figures are None.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
import uuid
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

from energy.procfs import read_process_times
from server.node import wire
from server.node.wire import (
    AVOIDED,
    BATCH_BOUNDS,
    COUNTERS,
    GAUGES,
    HISTOGRAMS,
    OUTCOMES,
    QUALITIES,
    BatchKey,
    RequestKey,
)

log = logging.getLogger(__name__)

MAX_KEYS = 96
MAX_LABEL_CHARS = 64
OVERFLOW = "other"
_HELLO_SECONDS = 2.0
_SILENT_AFTER_SECONDS = 5.0


class Usage:
    """Cumulative counters and histograms of one replica process, for one model."""

    def __init__(self, model: str) -> None:
        """`model` is the family's name and becomes the label `model`."""
        self.model = model[:MAX_LABEL_CHARS]
        self.instance = uuid.uuid4().hex
        self.pid = os.getpid()
        own = read_process_times(self.pid)
        self.started_ticks = own.started_ticks if own else 0
        self.revision = 0
        """Grows with every record; equal revisions mean equal figures."""
        self.gauges: dict[str, Callable[[], float]] = {}
        """Gauges (names in `wire.GAUGES`), read when a snapshot is taken."""
        self._requests: dict[RequestKey, wire.RequestTotals] = {}
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._avoided_cpu_ns = dict.fromkeys(AVOIDED, 0)
        self._histograms = {name: wire.Histogram() for name in HISTOGRAMS}
        self._batches: dict[BatchKey, wire.BatchTotals] = {}
        self._exemplars: dict[int, wire.Exemplar] = {}
        self._balance_ns = dict.fromkeys(AVOIDED, 0)

    def request(
        self,
        variant: str,
        point: str,
        quality: str,
        outcome: str,
        cpu_ns: int,
        *,
        total_ns: int | None = None,
        queue_ns: int | None = None,
        tokenize_ns: int | None = None,
    ) -> None:
        """Record one finished request.

        `cpu_ns` is the CPU time it owes: its share of its batches, tokenizing, look-ups; the other times are
        durations. `variant` and `point` name what answered and are empty if nothing did (shed, refused).
        Raises ValueError for an unknown `quality` or `outcome`, or a negative time.
        """
        key = RequestKey(variant, point, quality, outcome)
        totals = self._requests.get(key)
        if totals is None:
            totals = self._add_key(key)
        if cpu_ns < 0:
            raise ValueError(f"cpu_ns: {cpu_ns}; a difference of a CPU clock cannot be negative")
        self.revision += 1
        totals.count += 1
        totals.cpu_ns += cpu_ns
        bucket = wire.cpu_bucket(cpu_ns)
        totals.buckets[bucket] = totals.buckets.get(bucket, 0) + 1
        if total_ns is not None:
            self._observe("total", total_ns)
        if queue_ns is not None:
            self._observe("queue", queue_ns)
        if tokenize_ns is not None:
            self._observe("tokenize", tokenize_ns)

    def batch(self, variant: str, rows: int, tokens: int, padded_tokens: int, *, infer_ns: int, cpu_ns: int) -> None:
        """Record one run of a variant's model: rows, their own tokens, tokens computed (rows x longest), its duration
        and CPU time.
        """
        self.revision += 1
        counters = self._counters
        counters["batches"] += 1
        counters["rows"] += rows
        counters["tokens"] += tokens
        counters["padded_tokens"] += padded_tokens
        self._observe("batch_rows", rows)
        self._observe("batch_tokens", padded_tokens)
        self._observe("infer", infer_ns)
        sized = self._sized(BatchKey(variant[:MAX_LABEL_CHARS], bisect_left(BATCH_BOUNDS, rows)))
        sized.texts += rows
        sized.cpu_ns += max(cpu_ns, 0)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to one of `wire.COUNTERS`, for example `cache_hits`."""
        if amount < 0:
            raise ValueError(f"{name}: {amount}; counters only grow")
        self._counters[name] += amount
        self.revision += 1

    def avoided(self, reason: str, cpu_ns: int) -> None:
        """Add CPU time that was not spent thanks to `reason`, one of `wire.AVOIDED`; below 0 where it cost some.

        Costs are made up for before the figure grows again: the sum is right in the long run, and never goes back.
        """
        balance = self._balance_ns[reason] = self._balance_ns[reason] + cpu_ns
        if balance > self._avoided_cpu_ns[reason]:
            self._avoided_cpu_ns[reason] = balance
            self.revision += 1

    def traced(self, trace_id: str, variant: str, quality: str, total_ns: int, cpu_ns: int) -> None:
        """Remember a request whose trace was recorded, for the exemplars of the histograms: the newest of each bucket
        of the durations."""
        exemplar = wire.Exemplar(
            trace_id, variant[:MAX_LABEL_CHARS], quality, max(total_ns, 0), max(cpu_ns, 0), time.time()
        )
        self._exemplars[bisect_left(wire.DURATION_BOUNDS_NS, total_ns)] = exemplar

    def snapshot(self) -> bytes:
        """Everything so far, encoded; below `wire.MAX_DATAGRAM_BYTES` whatever labels were used."""
        return wire.encode_snapshot(
            wire.Snapshot(
                instance=self.instance,
                pid=self.pid,
                started_ticks=self.started_ticks,
                revision=self.revision,
                model=self.model,
                requests=self._requests,
                counters=self._counters,
                avoided_cpu_ns=self._avoided_cpu_ns,
                gauges=self.read_gauges(),
                histograms=self._histograms,
                batches=self._batches,
                exemplars=tuple(self._exemplars.values()),
            )
        )

    def read_gauges(self) -> dict[str, float]:
        """The gauges now."""
        return {name: float(read()) for name, read in self.gauges.items() if name in GAUGES}

    def _observe(self, name: str, value: int) -> None:
        histogram = self._histograms[name]
        histogram.count += 1
        histogram.total += value if value > 0 else 0
        index = bisect_left(HISTOGRAMS[name], value)
        histogram.buckets[index] = histogram.buckets.get(index, 0) + 1

    def _sized(self, key: BatchKey) -> wire.BatchTotals:
        """The row of a variant's batches of a size; past the limit, that of the variant `other`."""
        if key not in self._batches and len(self._batches) >= MAX_KEYS:
            key = key._replace(variant=OVERFLOW)
        return self._batches.setdefault(key, wire.BatchTotals())

    def _add_key(self, key: RequestKey) -> wire.RequestTotals:
        """A new row of the table; past the limit, requests are counted under the variant `other`."""
        if key.quality not in QUALITIES:
            raise ValueError(f"quality: {key.quality!r}; give one of {', '.join(QUALITIES)}")
        if key.outcome not in OUTCOMES:
            raise ValueError(f"outcome: {key.outcome!r}; give one of {', '.join(OUTCOMES)}")
        short = key._replace(variant=key.variant[:MAX_LABEL_CHARS], point=key.point[:MAX_LABEL_CHARS])
        if short not in self._requests and len(self._requests) >= MAX_KEYS:
            short = key._replace(variant=OVERFLOW, point=OVERFLOW)
        return self._requests.setdefault(short, wire.RequestTotals())


class NodeLink:
    """Answers the node process over datagram sockets (see `wire.socket_dir`).

    `joules_per_cpu_second`, `grams_per_kwh` and `sources` are what the node said last, and None (or empty)
    while it is absent or silent for more than 5 s.
    """

    def __init__(self, run_dir: Path, usage: Usage, *, parent_is_root: bool = False) -> None:
        """Nothing is opened before `start`. With `parent_is_root` the node takes this process's parent (Ray's raylet)
        for a root of the serving tree: it was not told of a driver. Raises ValueError if neither `run_dir` nor the
        temporary folder has room for a socket's path.
        """
        self._usage = usage
        self._run_dir = run_dir
        self._parent_is_root = parent_is_root
        self._node_path = wire.socket_path(run_dir)
        self._own_path = wire.socket_path(run_dir, f"r-{usage.instance[:12]}.sock")
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._polled_at = float("-inf")
        self._warned = False
        self.joules_per_cpu_second: float | None = None
        """Dynamic joules of a second of CPU time now; for the provisional figure in a reply."""
        self.loaded_ratio: float | None = None
        """Fully loaded joules for each dynamic one lately."""
        self.grams_per_kwh: float | None = None
        self.sources: tuple[str, ...] = ()

    async def start(self) -> None:
        """Open the socket and say hello until polled. Must run in the loop that writes the usage."""
        self._loop = asyncio.get_running_loop()
        self._tend()

    async def close(self) -> None:
        """Hand over the last figures and close. Harmless if never started."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is None:
            return
        self._send({"t": "bye", "id": self._usage.instance, "snap": self._usage.snapshot()})
        self._drop_socket()
        self._forget()

    def _tend(self) -> None:
        """Say hello if the node is silent, and come back later."""
        if self._socket is None:
            self._open()
        if self._loop.time() - self._polled_at > _SILENT_AFTER_SECONDS:
            self._forget()
            if self._socket is not None and not os.path.exists(self._own_path):
                # Somebody emptied the run folder: the node could not send here any more.
                self._drop_socket()
                self._open()
            self._say_hello()
        self._timer = self._loop.call_later(_HELLO_SECONDS, self._tend)

    def _say_hello(self) -> None:
        usage = self._usage
        self._send(
            {
                "t": "hello",
                "id": usage.instance,
                "pid": usage.pid,
                "started": usage.started_ticks,
                "parent": self._parent_is_root,
            }
        )

    def _open(self) -> None:
        own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * wire.MAX_DATAGRAM_BYTES)
            wire.own_socket_dir(self._run_dir)
            own.bind(self._own_path)
            wire.share_socket(self._own_path)
        except OSError as error:
            level = logging.DEBUG if self._warned else logging.WARNING
            log.log(level, "%s: %s; joules stay unknown until this works", self._own_path, error.strerror)
            self._warned = True
            own.close()
            return
        self._socket = own
        self._loop.add_reader(own.fileno(), self._receive)

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            with contextlib.suppress(OSError):
                os.unlink(self._own_path)
            wire.drop_socket_dir(self._run_dir)

    def _forget(self) -> None:
        self.joules_per_cpu_second = self.grams_per_kwh = self.loaded_ratio = None
        self.sources = ()

    def _send(self, message: dict[str, object], to: str | None = None) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(wire.pack({"v": wire.VERSION, **message}), to or self._node_path)
        except OSError as error:
            # No node, or its queue is full: all figures are cumulative, so the next answer makes up for it.
            log.debug("%s: %s", self._node_path, error)

    def _receive(self) -> None:
        assert self._socket is not None
        for _ in range(16):
            try:
                data, asker = self._socket.recvfrom(wire.MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("%s: %s", self._own_path, error)
                self._drop_socket()
                return
            try:
                self._answer(wire.unpack(data), asker)
            except (wire.WireError, KeyError, TypeError, ValueError) as error:
                log.warning("poll ignored: %r", error)

    def _answer(self, poll: dict[str, object], asker: object) -> None:
        kind = poll.get("t")
        if kind == "who":
            self._say_hello()
        if kind != "poll":
            return
        self._polled_at = self._loop.time()
        joules, grams, sources = poll.get("joules"), poll.get("grams"), poll.get("sources")
        loaded = poll.get("loaded")
        self.loaded_ratio = float(loaded) if isinstance(loaded, int | float) else None
        self.joules_per_cpu_second = float(joules) if isinstance(joules, int | float) else None
        self.grams_per_kwh = float(grams) if isinstance(grams, int | float) else None
        self.sources = tuple(str(name) for name in sources) if isinstance(sources, list) else ()
        usage = self._usage
        report: dict[str, object] = {"t": "report", "id": usage.instance, "n": poll["n"]}
        if poll.get("seen") == [usage.instance, usage.revision]:
            report["same"], report["gauge"] = usage.revision, usage.read_gauges()
        else:
            report["snap"] = usage.snapshot()
        self._send(report, asker if isinstance(asker, str) and asker else None)
