"""The application on a cluster's own Ray (KubeRay's RayService): `import_path: server.cluster:app`.

Nobody runs `jouleserve up` there. Whoever starts the cluster starts its machines, with a node process on each; Serve
starts the replicas and, once in the cluster on its head, the conductor. Replicas ask it for news at each health check.
Folders and files that the settings name are those of the machine that a process runs on.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import structlog
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from models.store import write_atomic
from server.conductor import Conductor, absolute
from server.config import SettingsError, load
from server.deployment import ReplicaActor, replica_options
from server.engine.errors import NotReady
from server.exposure import check_exposure
from server.jobs.calls import JobsCalls, answer
from server.jobs.desk import open_desk
from server.logs import set_up_logging
from server.node.figures import Figures, ask_node
from server.node.grid_state import FILE_NAME as GRID_FILE
from server.orders import Orders
from server.settings import ENV_PREFIX, Settings

CONDUCTOR = "conductor"
FIRST_NEWS_TIMEOUT_S = 120.0
NEWS_TIMEOUT_S = 10.0
MAX_CALLS = 10_000
"""Replicas wait for jobs in calls of their own, some for each of them."""
MAX_NODES = 4096
"""Node processes whose last figures are remembered."""
HEAD_NODE = {"node:__internal_head__": 0.001}
MACHINE_VARIABLES = {name: f"{ENV_PREFIX}SERVER__{name.upper()}" for name in ("run_dir", "metrics_port")}
"""What a machine may have of its own: set in its environment, it goes before the application's settings."""

log = structlog.get_logger(__name__)


def app(arguments: Mapping[str, Any]) -> Any:
    """Serve's builder: `arguments` holds the settings under `settings`, as a settings file has them.

    Raises SettingsError with every problem that they have.
    """
    settings = load(overrides=_flat(arguments.get("settings", {}))).settings
    if settings.grid.secret is not None:
        raise SettingsError(["grid.secret: it would be readable in Ray's dashboard; give grid.secret_file"])
    check_exposure(settings, lambda line: log.warning("exposed", what=line))
    tree = settings.model_dump(mode="json")
    conductor = serve.deployment(_ConductorActor).options(
        name=CONDUCTOR,
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "resources": HEAD_NODE},
        health_check_period_s=5,
        max_ongoing_requests=MAX_CALLS,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    # One uses every core of its machine, and shares no folder with another.
    replicas = serve.deployment(_Replica).options(name="replicas", max_replicas_per_node=1, **replica_options(settings))
    return replicas.bind(tree, conductor.bind(tree))


class _ConductorActor:
    """Looks at the grid, the store and the tuning file; tells whoever asks."""

    async def __init__(self, tree: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        settings = _of_this_machine(tree)
        set_up_logging(settings.server.log_level)
        settings.server.run_dir.mkdir(parents=True, exist_ok=True)
        self._grid_file = settings.node_dir / GRID_FILE
        self._machine = ray.get_runtime_context().get_node_id()
        self._growth = Growth()
        self._conductor = Conductor(
            settings,
            self._hand_over,
            lambda line: log.warning("conductor", what=line),
            ask=self._ask,
            first_version=int(time.time()),
        )
        await self._conductor.look()
        self._conductor.deployed = True
        self._desk = open_desk(settings, self._conductor.outlook)
        running = [self._conductor.run()] if self._desk is None else [self._conductor.run(), self._desk.run()]
        self._job = asyncio.gather(*running)

    async def news(self, machine: str, figures: dict[str, Any] | None) -> dict[str, Any]:
        """The orders in force and, for the other machines, the grid. `figures` are those of the asker's machine."""
        if figures is not None:
            self._growth.take(Figures(**figures))
        grid = None if machine == self._machine else await asyncio.to_thread(_read, self._grid_file)
        return {"orders": self._conductor.orders.to_user_config(), "grid": grid}

    async def jobs(self, method: str, arguments: list[Any]) -> list[Any]:
        """A call for the jobs, which this actor owns (see `server.jobs.calls`)."""
        if self._desk is None:
            return ["error", NotReady.__name__, "jobs: are switched off", None]
        return await answer(self._desk, method, arguments)

    async def check_health(self) -> None:
        """Raises when this actor should be replaced."""
        if self._job.done():
            raise RuntimeError("the conductor has ended; see its log")

    async def __del__(self) -> None:
        self._job.cancel()
        await asyncio.gather(self._job, return_exceptions=True)
        if self._desk is not None:
            await self._desk.close()

    async def _hand_over(self, orders: Orders) -> None:
        """Nothing to do: `news` says what `Conductor.orders` holds."""

    async def _ask(self) -> Figures | None:
        return self._growth.figures()


class _ConductorCalls(JobsCalls):
    """The way to the jobs over Serve's handle of the conductor. Leases of a machine that dies run out by themselves."""

    def __init__(self, conductor: Any) -> None:
        self._conductor = conductor

    async def carry(self, method: str, arguments: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        """See `JobsCalls`."""
        try:
            async with asyncio.timeout(timeout_s):
                reply: list[Any] = await self._conductor.jobs.remote(method, list(arguments))
        except (TimeoutError, RayError, RayServeException) as error:
            raise NotReady("jobs: their owner cannot be reached; ask again in a moment") from error
        return reply


@serve.ingress()
class _Replica(ReplicaActor):
    """A replica that is told by the conductor."""

    async def __init__(self, tree: dict[str, Any], conductor: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        settings = _of_this_machine(tree)
        settings.server.run_dir.mkdir(parents=True, exist_ok=True)
        super().__init__(settings, driven=False, jobs=lambda: _ConductorCalls(conductor))
        self._conductor = conductor
        self._machine = ray.get_runtime_context().get_node_id()
        self._grid: str | None = None
        news = await self._ask(FIRST_NEWS_TIMEOUT_S)
        await self.begin(Orders.from_user_config(news["orders"]))

    async def catch_up(self) -> None:
        """Follow the conductor's orders, and hand the grid on to this machine's node process."""
        try:
            news = await self._ask(NEWS_TIMEOUT_S)
            await self._replica.obey(Orders.from_user_config(news["orders"]))
            await self._hand_on(news["grid"])
        except Exception as error:  # the conductor is being replaced: what was told last holds on
            log.warning("no_news", why=repr(error))

    async def _ask(self, timeout_s: float) -> dict[str, Any]:
        figures = await ask_node(self._settings.node_address)
        async with asyncio.timeout(timeout_s):
            told: dict[str, Any] = await self._conductor.news.remote(
                self._machine, None if figures is None else asdict(figures)
            )
        return told

    async def _hand_on(self, grid: str | None) -> None:
        # It says when it was written, so that each look of the conductor gives another one.
        if grid is not None and grid != self._grid:
            await asyncio.to_thread(write_atomic, self._settings.node_dir / GRID_FILE, grid.encode())
            self._grid = grid


class Growth:
    """What the node processes of a cluster counted since each was first heard of, added up.

    Machines come and go, and come back under another name in Ray: each total is known by the node process's own name,
    and only what it grew by counts. What it had counted before, maybe for years, is nothing of now; after it went back
    (its last seconds were lost) it counts from there.
    """

    def __init__(self) -> None:
        self._last: dict[str, Figures] = {}
        self._requests = self._standard_texts = 0
        self._cpu_seconds = self._joules = 0.0
        self._metered = False

    def take(self, figures: Figures) -> None:
        """The newest figures of a node process."""
        before = self._last.pop(figures.node, figures)
        self._last[figures.node] = figures
        if len(self._last) > MAX_NODES:
            del self._last[next(iter(self._last))]  # the one that was not heard of for longest
        self._requests += max(figures.requests - before.requests, 0)
        self._standard_texts += max(figures.standard_texts - before.standard_texts, 0)
        self._cpu_seconds += max(figures.cpu_seconds - before.cpu_seconds, 0.0)
        if figures.joules is not None:
            self._metered = True
            self._joules += max(figures.joules - (figures.joules if before.joules is None else before.joules), 0.0)

    def figures(self) -> Figures | None:
        """The sums so far; None as long as no machine was heard of."""
        if not self._last:
            return None
        return Figures(
            startup_cpu_seconds=None,
            startup_joules=None,
            requests=self._requests,
            cpu_seconds=self._cpu_seconds,
            joules=self._joules if self._metered else None,
            standard_texts=self._standard_texts,
        )


def _of_this_machine(tree: Mapping[str, Any]) -> Settings:
    own = {name: os.environ[variable] for name, variable in MACHINE_VARIABLES.items() if variable in os.environ}
    return absolute(Settings.model_validate({**tree, "server": {**tree["server"], **own}}))


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
