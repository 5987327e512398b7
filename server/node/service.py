"""The node process: one tick a second over meters, process tree and replicas, and the books behind `/metrics`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import json
import logging
import os
import signal
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from energy.calibration import Calibration
from energy.domains import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND
from energy.idle import IdleModel
from energy.ledger import Conservation, LedgerError
from energy.meter import Meter
from energy.procfs import TICK_NS, read_memory_gib, read_process_times
from energy.sources import select_sources
from energy.sources.estimated import EstimatedSource
from server.node import state as node_state
from server.node import wire
from server.node.figures import Figures
from server.node.grid_state import GridFile
from server.node.hour_keeper import HourKeeper
from server.node.hours import FOLDER, HourFiles
from server.node.http import JSON, HttpServer, Request, Response
from server.node.jobs_state import read_jobs_state
from server.node.metrics import Books, build_version, counters_of, render
from server.node.model_file import ModelFile
from server.node.neighbours import neighbours
from server.node.proctree import ServingTree
from server.node.recent import RecentLaw
from server.node.replicas import Replicas
from server.node.sampler import Sampler
from server.node.settings import NodeSettings
from server.node.settle import Settlement
from server.node.startup import StartUp
from server.node.wire import GAUGES

log = logging.getLogger(__name__)

LOCK_FILE = "node.lock"
PORT_FILE = "node.port"
ANSWER_SECONDS = 0.2
"""How long the last answers are waited for when the process ends."""
PATIENT_TICK_SECONDS = 2.0
"""After longer ticks each is settled: figures would be old otherwise."""
SETTLE_TICKS = 5
"""So many ticks are settled at once, which costs a third of settling each (see `server.node.sampler`). Whoever asks for
figures is shown the latest tick's all the same."""
ORPHANED_AFTER_TICKS = 10


class AlreadyRunning(Exception):
    """Another node process owns the run folder; the message names it."""


def take_lock(run_dir: Path) -> int:
    """Take the run folder's lock for as long as this process lives. Raises AlreadyRunning."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / LOCK_FILE
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise AlreadyRunning(
            f"run_dir: {run_dir} belongs to a running node process (pid {owner}); stop it or use another folder"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


class NodeService:
    """Everything of the node process but its command line."""

    def __init__(self, settings: NodeSettings) -> None:
        """Open the meters and the books. Raises AlreadyRunning, SourceUnavailable, CoefficientError or
        CalibrationError."""
        self._settings = settings
        self._lock = take_lock(settings.run_dir)
        calibration = None if settings.calibration_path is None else Calibration.read(settings.calibration_path)
        selection = select_sources(
            settings.energy_source,
            proc_root=settings.proc_root,
            powercap_root=settings.powercap_root,
            cpu_family=settings.cpu_family,
            calibration=calibration,
        )
        self._clock = selection.clock
        estimated = selection.estimated
        reference = estimated or EstimatedSource(
            self._clock, proc_root=settings.proc_root, cpu_family=settings.cpu_family
        )
        self._meter = Meter(selection.sources)
        self._source_names = [source.name for source in selection.sources]
        state = node_state.load(settings.state_file)
        self._state = state
        self._meter.missing_ticks.update(state.missing_ticks)
        self._meter.unmetered_uj.update(state.unmetered_uj)
        self._idle = IdleModel.fresh(reference.cpu)
        self._idle.restore(state.idle_watts, tuple(d for s in selection.sources for d in s.domains()))
        rate = estimated.dynamic_joules_per_cpu_second() if estimated else None
        self._settlement = Settlement(state.ledger, state.totals, self._idle, rate, settings.pue)
        self._settlement.remembered = dict(state.settled)
        roots = (os.getpid(), settings.root_pid) if settings.root_pid else (os.getpid(),)
        self._tree = ServingTree(roots, settings.proc_root)
        self._sampler = Sampler(self._meter, self._clock, self._tree, clock_is_read=estimated is not None)
        self._replicas = Replicas(
            settings.run_dir,
            self._settlement,
            self._adopt,
            patient=settings.tick_seconds <= PATIENT_TICK_SECONDS,
        )
        self._startup = StartUp(self._root_age_s())
        self._grid = GridFile(settings.run_dir)
        self._model = ModelFile(settings.run_dir)
        self._recent = RecentLaw()
        self._version = build_version()
        self._memory_gib = round(read_memory_gib(settings.proc_root), 1)
        self._hours = HourKeeper(
            state.hours,
            HourFiles(settings.state_file.parent / FOLDER),
            lambda: counters_of(self._books(), self._version),
            self._describe,
            partial(node_state.write_atomic, durable=False),
        )
        self._hours.resume()
        self._dirty = True
        self._orphaned_ticks = 0
        self._grid_grams: float | None = None
        """The grid's intensity as the open window began."""
        self._grams: float | None = None
        """Intensity in force, cooling included."""
        self._persist_at = 0.0
        self._write_failures = 0
        self._next_tick = 0.0
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until `stopping` is set or the driver is gone; then settle, persist and leave."""
        loop = self._loop = asyncio.get_running_loop()
        server = HttpServer({"/metrics": self._metrics, "/conservation": self._conservation, "/healthz": self._health})
        self._replicas.open(loop)
        port = await server.start(self._settings.host, self._settings.port)
        pages = wire.socket_path(self._settings.run_dir, wire.PAGES_SOCKET)
        await server.start_local(pages)
        wire.share_socket(pages)
        node_state.write_atomic(self._settings.run_dir / PORT_FILE, f"{port}\n".encode(), durable=False)
        log.info("metrics on http://%s:%d/metrics, energy by %s", self._settings.host, port, self._source_names)
        for pid in neighbours(self._settings.proc_root):
            log.warning("pid %d meters this machine, too, and counts its idling like this one: do not add them up", pid)
        # What lives by now lives as long as the process: keep the collector from walking it again and again.
        gc.collect()
        gc.freeze()
        self._next_tick = loop.time()
        self._tick()
        try:
            await self.stopping.wait()
            self._timer.cancel()
            self._tick()
            await asyncio.sleep(ANSWER_SECONDS if self._replicas.waiting else 0)
        finally:
            await server.close()
            self._finish()

    def _finish(self) -> None:
        self._timer.cancel()
        self._settle()
        self._replicas.open_door()
        self._settlement.close(self._grams)
        self._dirty = True
        self._hours.show()
        self._persist(durable=True)
        self._replicas.close()
        self._tree.close()
        with contextlib.suppress(OSError):
            (self._settings.run_dir / PORT_FILE).unlink()
        os.close(self._lock)

    def _tick(self) -> None:
        """Ask the replicas anew and read the meters with it; before that, settle what is due with the answers in."""
        now = self._loop.time()
        self._next_tick = max(self._next_tick + self._settings.tick_seconds, now)
        self._timer = self._loop.call_at(self._next_tick, self._tick)
        try:
            if self._is_due(self._open_ticks):
                self._settle()
                if now >= self._persist_at:
                    self._persist(durable=False)
            if not self._open_ticks:
                self._look_at_grid()
            self._replicas.bury_dead(self._tree.is_alive)
            self._replicas.poll(self._settlement.joules_per_cpu_second, self._grid_grams, self._source_names)
            self._sampler.read(self._replicas.peers.values(), everybody=self._is_due(self._open_ticks + 1))
            self._startup.look(len(self._replicas.peers), self._tree, self._settlement.joules_per_cpu_second)
        except Exception:
            # One bad tick is not worth the process: the next one makes up for it, all counters being cumulative. If the
            # meters were read already, their difference is lost, and the conservation error says so.
            log.exception("tick failed")
            return
        self._watch_root()

    @property
    def _open_ticks(self) -> int:
        """Ticks that were read and not settled."""
        return self._settlement.open_ticks + len(self._sampler)

    def _is_due(self, open_ticks: int) -> bool:
        """Whether so many ticks are to be settled. Where nobody serves, one is."""
        patient = self._replicas.peers and self._settings.tick_seconds <= PATIENT_TICK_SECONDS
        return open_ticks >= (SETTLE_TICKS if patient else 1)

    def _look_at_grid(self) -> None:
        grams = self._grid_grams = self._grid.grams_per_kwh()
        self._grams = None if grams is None else grams * self._settings.pue

    def _settle(self, *, patient: bool = False) -> None:
        """Settle the ticks that were read with the answers that are in; if one is missing, `patient` leaves the window
        open for it, with all that was metered."""
        self._replicas.receive()
        self._replicas.read_records()
        ticks = self._sampler.take()
        for tick in ticks:
            self._settlement.add(tick)
        if self._settlement.open_ticks and not (patient and self._replicas.waiting):
            self._settlement.settle(self._replicas.answered, self._grams)
            self._dirty = True  # also where its ticks were read for an earlier look, which left it open
            if self._recent.due(now := self._loop.time()):
                self._recent.mark(now, self._conserved())
        if ticks:
            self._dirty = True
            self._pass_time(sum(tick.offered_cpu_ns for tick in ticks) / self._clock.cpus / NANOSECONDS_PER_SECOND)

    def _pass_time(self, seconds: float) -> None:
        """Let the hour go on; a closed one is on disk in the state before it is in its file, or else a restart with an
        older state would close it once more."""
        closed = self._hours.pass_time(time.time(), seconds, self._grid_grams, self._grid.kind)
        if closed and self._persist(durable=True):
            self._hours.flush()

    def _adopt(self, pid: int, started_ticks: int, with_parent: bool) -> bool:
        """Whether `/proc` shows that process; if so it belongs to the tree from now on, its parent's tree with it."""
        times = read_process_times(pid, self._settings.proc_root)
        if times is None or times.started_ticks != started_ticks:
            return False
        if with_parent and times.parent > 1:
            self._tree.add_root(times.parent)
        self._tree.add_root(pid)
        return True

    def _root_age_s(self) -> float:
        """How long the driver had lived when this process began."""
        root = read_process_times(self._settings.root_pid or os.getpid(), self._settings.proc_root)
        own = read_process_times(os.getpid(), self._settings.proc_root)
        if root is None or own is None:
            return 0.0
        return (own.started_ticks - root.started_ticks) * TICK_NS / NANOSECONDS_PER_SECOND

    def _watch_root(self) -> None:
        """Leave when the driver is gone and no replica is left: nobody else would end this process."""
        root = self._settings.root_pid
        gone = root and self._tree.spent_ns(root) is None and not self._replicas.peers
        self._orphaned_ticks = self._orphaned_ticks + 1 if gone else 0
        if self._orphaned_ticks >= ORPHANED_AFTER_TICKS:
            log.warning("the driver (pid %d) and all replicas are gone; leaving", root)
            self.stopping.set()

    def _meter_cpu_seconds(self) -> float:
        return self._state.meter_cpu_seconds + time.process_time()

    def _persist(self, *, durable: bool) -> bool:
        """Write the state if it is not on disk as it is; False if that failed."""
        if not self._dirty:
            return True
        # Half a tick less: timers are never on time to the microsecond, and the next turn is ticks away.
        self._persist_at = self._loop.time() + self._settings.persist_seconds - self._settings.tick_seconds / 2
        state = self._state
        kept = node_state.NodeState(
            ledger=state.ledger,
            totals=state.totals,
            settled=self._settlement.settled_snapshots(),
            idle_watts=self._idle.to_json(),
            meter_cpu_seconds=self._meter_cpu_seconds(),
            pending_uj=self._settlement.pending_by_domain(),
            hours=self._hours.book,
            name=state.name,
            missing_ticks=self._meter.missing_ticks,
            unmetered_uj=self._meter.unmetered_uj,
        )
        try:
            node_state.write_atomic(self._settings.state_file, kept.encode(), durable=durable)
        except OSError as error:
            self._write_failures += 1
            log.error("%s: totals cannot be persisted: %s", self._settings.state_file, error)
            return False
        self._dirty = False
        return True

    def _conserved(self) -> Conservation:
        return self._state.ledger.conservation(self._settlement.pending_uj)

    def _describe(self) -> dict[str, Any]:
        """What a report has to know of an hour beside its counters."""
        grid = self._grid.state()
        sources = self._meter.sources
        return {
            "release": self._version,
            "pue": self._settings.pue,
            "sources": self._source_names,
            "uncertainty": {source.name: source.relative_uncertainty for source in sources},
            "dynamic_uncertainty": {source.name: source.dynamic_uncertainty for source in sources},
            "zone": "" if grid is None else grid.zone,
            "provider": "" if grid is None else grid.provider,
            "cpus": self._clock.cpus,
            "memory_gib": self._memory_gib,
            "compiled": [asdict(cost) for cost in self._model.costs()],
        }

    def _books(self) -> Books:
        gauges = dict.fromkeys(GAUGES, 0.0)
        for peer in self._replicas.peers.values():
            for name, value in peer.gauges.items():
                gauges[name] += value
        grams = self._grid.grams_per_kwh()
        return Books(
            ledger=self._state.ledger,
            totals=self._state.totals,
            pending_uj=self._settlement.pending_uj,
            uncertainty={source.name: source.relative_uncertainty for source in self._meter.sources},
            dynamic_uncertainty={source.name: source.dynamic_uncertainty for source in self._meter.sources},
            recent_error_ratio=self._recent.error_ratio(self._conserved()),
            missing_ticks=self._meter.missing_ticks,
            missing_now=self._meter.missing_now,
            unmetered_uj=self._meter.unmetered_uj,
            joules_per_cpu_second=self._settlement.joules_per_cpu_second,
            meter_cpu_seconds=self._meter_cpu_seconds(),
            gauges=gauges,
            replicas=len(self._replicas.peers),
            processes=len(self._tree),
            grid=self._grid.state(),
            grams_per_kwh=grams,
            grid_age_s=self._grid.age_s(),
            pue=self._settings.pue,
            startup=self._startup,
            write_failures=self._write_failures,
            free_bytes=_free_bytes(self._settings.state_file.parent),
            compiled=self._model.costs(),
            exemplars=tuple(one for peer in self._replicas.peers.values() for one in peer.exemplars),
            jobs=read_jobs_state(self._settings.run_dir),
        )

    def _metrics(self, request: Request) -> Response:
        self._settle(patient=True)
        # What was shown must never be taken back by a crash, so it is on disk before it is shown.
        self._persist(durable=False)
        body, content_type = render(self._books(), request.accept, self._version)
        return Response(body, content_type)

    def _conservation(self, request: Request) -> Response:
        self._settle(patient=True)
        self._persist(durable=False)
        now = self._state.ledger.conservation(self._settlement.pending_uj)
        shown = now
        if "since" in request.query:
            try:
                shown = now.since(Conservation.from_mark(request.query["since"]))
            except LedgerError as error:
                return Response(json.dumps({"error": f"since: {error}"}).encode(), JSON, 400)
        answer = {
            "measured_joules": shown.measured_uj / MICROJOULES_PER_JOULE,
            "attributed_joules": shown.attributed_uj / MICROJOULES_PER_JOULE,
            "idle_joules": shown.idle_uj / MICROJOULES_PER_JOULE,
            "overhead_joules": shown.overhead_uj / MICROJOULES_PER_JOULE,
            "other_joules": shown.other_uj / MICROJOULES_PER_JOULE,
            "pending_joules": shown.pending_uj / MICROJOULES_PER_JOULE,
            "error_ratio": shown.error_ratio,
            "unmetered_joules": sum(self._meter.unmetered_uj.values()) / MICROJOULES_PER_JOULE,
            "sources": self._source_names,
            "late_records": self._state.totals.late_records,
            "mark": now.to_mark(),
        }
        return Response(json.dumps(answer).encode(), JSON)

    def figures(self) -> Figures:
        """How the server does, in a few numbers."""
        return Figures(
            startup_cpu_seconds=self._startup.cpu_seconds,
            startup_joules=self._startup.joules,
            requests=sum(self._state.totals.requests.values()),
            cpu_seconds=self._tree.cpu_ns / NANOSECONDS_PER_SECOND,
            joules=self._state.ledger.service_uj() / MICROJOULES_PER_JOULE,
            standard_texts=self._state.totals.standard_texts,
            node=self._state.name,
        )

    def _health(self, request: Request) -> Response:
        self._settle(patient=True)
        answer = {
            "status": "ok",
            "pid": os.getpid(),
            "sources": self._source_names,
            "replicas": len(self._replicas.peers),
            "processes": len(self._tree),
            **asdict(self.figures()),
        }
        return Response(json.dumps(answer).encode(), JSON)


def _free_bytes(folder: Path) -> int | None:
    """What is free for this user where the totals are kept; None if that cannot be told."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


async def serve(settings: NodeSettings) -> None:
    """Run the node process until SIGTERM or SIGINT."""
    service = NodeService(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stopping.set)
    await service.run()
