"""A replica: the engine, its ASGI app and its link to the node process. Knows nothing of Ray.

It is told what to do by `server.orders`; a replica that starts later gets the newest ones.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog

from models.store import Store, StoreError, Version
from server.admin import Admin
from server.api.app import App
from server.api.replies import JobsIntake, Replies
from server.config_problems import SettingsError
from server.console.data import console_data
from server.engine.batching import BatchLimits
from server.engine.engine import Engine, EngineLimits
from server.engine.errors import EngineError
from server.engine.family import Family, load_family
from server.engine.second_level import SecondLevel
from server.exposure import make_admin_guard, make_guard
from server.jobs.link import JobsLink
from server.jobs.port import JobsPort
from server.jobs.worker import LOOPS, JobWorker
from server.orders import Orders
from server.settings import Settings
from server.shaping.policy import CLASSES, DialState
from server.shaping.tunables import Tunables
from server.staffing import Staffing
from server.tracing import open_tracer
from server.usage import NodeLink, Usage

if TYPE_CHECKING:
    from server.rpc.server import RpcServer

log = structlog.get_logger(__name__)


class Replica:
    """Everything that answers requests in one process."""

    def __init__(
        self,
        settings: Settings,
        verified: Version | None = None,
        jobs: Callable[[], JobsPort] | None = None,
        *,
        parent_is_root: bool = False,
    ) -> None:
        """`verified` is a version that this process has opened already: its digests need not be computed twice. `jobs`
        makes a way to the jobs' owner; None for the socket in the run folder. `parent_is_root`: see `NodeLink`."""
        self._settings = settings
        self._verified = verified
        self._store = Store(settings.model.store)
        self._orders: Orders | None = None
        self._refused_version: str | None = None
        self._reconfiguring = asyncio.Lock()
        self.usage = Usage(model=settings.model.family)
        self.link = NodeLink(settings.node_dir, self.usage, parent_is_root=parent_is_root)
        self._staffing = Staffing(settings, self.usage)
        self._tracer = open_tracer(settings.tracing.otlp_endpoint)
        self.engine: Engine | None = None
        self.replies: Replies | None = None
        self.app: App | None = None
        self._rpc: RpcServer | None = None
        self._way = jobs
        self._links: list[JobsLink] = []
        self._jobs: asyncio.Task[None] | None = None

    async def obey(self, orders: Orders) -> None:
        """Start by the first orders, then follow each later ones."""
        if self.engine is None:
            await self._start(orders)
        else:
            await self._reconfigure(self.engine, orders)

    async def _start(self, orders: Orders) -> None:
        """Load and warm the family, then open the link to the node process. Raises StoreError or EngineError."""
        family = await asyncio.to_thread(load_family, await self._sound_version(orders))
        dial = orders.dial
        if not family.has(dial.points()):
            dial = DialState.initial(family.points, orders.tunables.shaping)
        self._orders = orders
        self.engine = Engine(
            family,
            self._limits(orders.tunables),
            dial,
            self.usage,
            self._staffing.at_start(family),
            self._second_level(),
        )
        server = self._settings.server
        self.replies = Replies(
            self.engine, self.link, server.max_body_bytes, self.usage, make_guard(server), self._tracer, self._intake()
        )
        self.app = App(
            self.replies,
            self.status,
            console_data(self.engine, self._tunables, self._settings),
            self._admin(self.engine),
        )
        engine = self.engine
        self.usage.gauges.update(
            queue_depth=lambda: engine.queued,
            in_flight=lambda: engine.active,
            cache_bytes=lambda: engine.cache.size_bytes,
            cache_entries=lambda: len(engine.cache),
            version_refused=lambda: self._refused_version is not None,
        )
        if server.grpc_port is not None:
            from server.rpc.server import RpcServer  # costs memory: loaded only where it is asked for

            self._rpc = RpcServer(self.replies, server.host, server.grpc_port, server.max_body_bytes)
            await self._rpc.start()
        await self.link.start()
        self._staffing.begin(engine)
        if self.replies.jobs is not None:
            worker = JobWorker(
                [self._jobs_port() for _ in range(LOOPS)], engine, self.link, self._settings.jobs.share_beside_clients
            )
            self._jobs = asyncio.create_task(worker.run())

    async def _sound_version(self, orders: Orders) -> Version:
        """The version to serve.

        A replica may be started long after the orders were given. Where the version's bytes no longer match their
        digests, the newest older sound one is served, unless the settings fix the version. Raises StoreError.
        """
        model = self._settings.model
        if self._verified is not None and self._verified.name == orders.version:
            return self._verified
        if model.version is not None:
            return await asyncio.to_thread(self._store.open, model.family, orders.version)
        version, refused = await asyncio.to_thread(self._store.open_newest_sound, model.family, orders.version)
        for message in refused:
            self._refused_version = orders.version
            log.error("version_refused", version=orders.version, kept=version.name, why=message)
        return version

    def _intake(self) -> JobsIntake | None:
        jobs = self._settings.jobs
        return JobsIntake(self._jobs_port(), jobs.max_body_bytes, jobs.max_texts_per_job) if jobs.enabled else None

    def _jobs_port(self) -> JobsPort:
        """A way of its own to the jobs' owner."""
        if self._way is not None:
            return self._way()
        self._links.append(JobsLink(self._settings.server.run_dir))
        return self._links[-1]

    async def _reconfigure(self, engine: Engine, orders: Orders) -> None:
        """Take new orders without losing a request. A version that is corrupt or will not load is refused: the one in
        force stays, and `status` says so."""
        async with self._reconfiguring:
            assert self._orders is not None
            orders = orders.after(self._orders)
            if orders == self._orders:
                return
            family, dial = engine.family, orders.dial
            if orders.version == family.version:
                self._refused_version = None
            elif orders.version != self._refused_version:
                family = await self._load_or_keep(orders.version, family)
            if family.version != orders.version and not family.has(dial.points()):
                dial = engine.dial  # made for the points of the version that was refused
            engine.reconfigure(self._limits(orders.tunables), dial, family)
            self._orders = orders

    async def stop(self) -> None:
        """Answer what was accepted, then end."""
        await self._staffing.stop()
        await self._stop_jobs()
        if self._rpc is not None:
            await self._rpc.say_stopping()
        if self.engine is not None:
            drained = await self.engine.drain(self._settings.server.drain_timeout_s)
            if not drained:
                log.warning("drain_cut_short", seconds=self._settings.server.drain_timeout_s)
            if self._rpc is not None:
                await self._rpc.stop()
            await self.engine.close()
        await self.link.close()  # the books first: spans may be waiting for a collector that does not answer
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    def _tunables(self) -> dict[str, Any]:
        assert self._orders is not None
        return self._orders.tunables.to_user_config()

    async def _stop_jobs(self) -> None:
        """What is being computed for jobs is given back."""
        if self._jobs is not None:
            self._jobs.cancel()
            await asyncio.gather(self._jobs, return_exceptions=True)
        for link in self._links:
            await link.close()

    def status(self) -> dict[str, Any]:
        """What `/info` says beyond the family."""
        return {
            "pid": os.getpid(),
            "store": str(self._store.root),
            "tunables": self._tunables(),
            "refused_version": self._refused_version,
            "joules_per_cpu_second": self.link.joules_per_cpu_second,
            "energy_sources": list(self.link.sources),
            "workers": None if self.engine is None else self._staffing.describe(self.engine),
        }

    def _admin(self, engine: Engine) -> Admin:
        settings = self._settings
        return Admin(settings.tuning_path, lambda: engine.family.points, make_admin_guard(settings.server))

    def _second_level(self) -> SecondLevel | None:
        """The cache that replicas share, if the settings name one. Raises SettingsError if its password is missing."""
        cache = self._settings.cache
        if cache.redis_url is None or not cache.enabled:
            return None
        from server.engine.redis_level import open_redis  # an extra: loaded only where it is asked for

        password = None
        if cache.redis_password_file is not None:
            try:
                password = cache.redis_password_file.read_text().strip()
            except OSError as error:
                raise SettingsError([f"cache.redis_password_file: {error.strerror}: {error.filename}"]) from None
        return open_redis(cache.redis_url, password, self.usage.count)

    async def _load_or_keep(self, name: str, kept: Family) -> Family:
        try:
            version = await asyncio.to_thread(self._store.open, self._settings.model.family, name)
            family = await asyncio.to_thread(load_family, version)
        except (StoreError, EngineError, OSError) as error:
            self._refused_version = name
            log.error("version_refused", version=name, kept=kept.version, why=str(error))
            return kept
        self._refused_version = None
        log.info("version_taken", version=name, before=kept.version)
        return family

    def _limits(self, tunables: Tunables) -> EngineLimits:
        server, batching, cache = self._settings.server, tunables.batching, tunables.cache
        objective_ms = batching.latency_objective_ms
        return EngineLimits(
            batch=BatchLimits(
                batching.max_rows,
                batching.max_tokens,
                objective_ns=None if objective_ms is None else round(objective_ms * 1e6),
                inline_ns=round(batching.inline_ms * 1e6),
            ),
            max_queue_requests=batching.max_queue_requests,
            request_timeout_s=server.request_timeout_s,
            max_text_chars=server.max_text_chars,
            max_texts_per_request=server.max_texts_per_request,
            cache_max_bytes=cache.max_bytes if self._settings.cache.enabled else 0,
            cache_ttl_s=cache.ttl_s,
            p99_ns={
                quality: round(bound_ms * 1e6)
                for quality in CLASSES
                if (bound_ms := getattr(tunables.shaping.p99_ms, quality)) is not None
            },
        )
