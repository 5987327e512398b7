"""Ray Serve wiring, and nothing else."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import ray
import structlog
from ray import serve
from ray.exceptions import RayActorError

from server import lean_ray
from server.config_problems import SettingsError
from server.fast_lane import open_fast_lane
from server.jobs.port import JobsPort
from server.lean import APP_NAME, ray_init_arguments
from server.logs import set_up_logging
from server.orders import Orders
from server.scaling import IN_FLIGHT, autoscaling_config
from server.settings import Settings

# Serve's own queue in front of a replica must never fill before the engine's, which answers 429 in good form.
MAX_ONGOING_REQUESTS = 100_000
DEPLOY_TIMEOUT_S = 120.0
TELL_TIMEOUT_S = 60.0

log = structlog.get_logger(__name__)


class ReplicaActor:
    """The replica inside a Serve actor; `serve.ingress()` makes a deployment of what is made of it."""

    def __init__(self, settings: Settings, *, driven: bool = True, jobs: Callable[[], JobsPort] | None = None) -> None:
        """`driven`: the node process was told of a driver, below which this process is. `jobs`: see `Replica`."""
        # Here, so that the driver, which only ships this class, does not load the runtime.
        from server.replica import Replica

        lean_ray.in_replica()
        self._settings = settings
        set_up_logging(settings.server.log_level)  # a process of its own, which knows nothing of the command's
        apart = not driven or settings.energy.node_dir is not None
        self._replica = Replica(settings, jobs=jobs, parent_is_root=apart)
        self._lane: asyncio.Task[bool] | None = None

    def __serve_build_asgi_app__(self) -> Any:
        async def dispatch(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                # Serve sends it before the first orders, without which there is no app yet.
                for phase in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{phase}.complete"})
                return
            assert self._replica.app is not None
            await self._replica.app(scope, receive, send)

        return dispatch

    async def begin(self, orders: Orders) -> None:
        """Start by the first orders."""
        await self._replica.obey(orders)
        await self.catch_up()
        if self._lane is None and self._settings.server.fast_lane and self._replica.replies is not None:
            self._lane = asyncio.create_task(open_fast_lane(self._replica.replies))

    async def catch_up(self) -> None:
        """Follow the orders in force. Raises nothing."""
        raise NotImplementedError

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve, for the policy in `server.scaling`."""
        engine = self._replica.engine
        return {IN_FLIGHT: 0.0 if engine is None else float(engine.active)}

    async def check_health(self) -> None:
        """Raises when the replica should be replaced."""
        await self.catch_up()
        engine = self._replica.engine
        if engine is None or not engine.healthy:
            raise RuntimeError("the engine has not started, or a worker of it has died")

    async def __del__(self) -> None:
        await self._replica.stop()


@serve.ingress()
class _Ingress(ReplicaActor):
    """A replica of `jouleserve up`, which tells it what to do."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(Settings.model_validate(settings))

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve after the constructor."""
        await self.begin(Orders.from_user_config(user_config))

    async def obey(self, orders: dict[str, Any]) -> None:
        """Follow new orders (see `tell`)."""
        await self._replica.obey(Orders.from_user_config(orders))

    async def catch_up(self) -> None:
        """Follow the orders in force: those of the user_config are as old as the server, and a replica that was about
        to start when newer ones were told has missed them."""
        try:
            orders = await asyncio.to_thread(Orders.load, self._settings.orders_path)
        except FileNotFoundError:  # a replica on a machine that does not share the folder
            return
        except (OSError, SettingsError, ValueError, KeyError) as error:
            log.warning("orders_not_read", path=str(self._settings.orders_path), why=str(error))
            return
        await self._replica.obey(orders)


def start_ray(settings: Settings, *, cpus: int) -> None:
    """Start a Ray node and Serve's controller and proxy in it. The lean environment must be set already."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    lean_ray.in_driver(dashboard=settings.server.dashboard)
    ray.init(**ray_init_arguments(cpus=cpus, dashboard=settings.server.dashboard))
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.server.host, "port": settings.server.port},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )


def deploy(settings: Settings, orders: Orders) -> None:
    """Deploy, and wait until the application runs."""
    deployment = serve.deployment(_Ingress).options(
        name=APP_NAME, user_config=orders.to_user_config(), **replica_options(settings)
    )
    arguments = settings.model_dump(mode="json")
    serve._run(deployment.bind(arguments), name=APP_NAME, route_prefix="/", _blocking=False)
    _wait_running(DEPLOY_TIMEOUT_S)


def replica_options(settings: Settings) -> dict[str, Any]:
    """Serve's options for replicas, however they are deployed."""
    scaling = autoscaling_config(settings.server)
    number: dict[str, Any] = (
        {"num_replicas": settings.server.replicas} if scaling is None else {"autoscaling_config": scaling}
    )
    return {
        **number,
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "ray_actor_options": {"num_cpus": 1},
        # How long a replica that died may go unnoticed.
        "health_check_period_s": 2,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": settings.server.drain_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
    }


def _wait_running(timeout_s: float) -> None:
    """Wait until the application runs. Raises TimeoutError or RuntimeError with what Serve says of it."""
    deadline = time.monotonic() + timeout_s
    while True:
        status = serve.status().applications.get(APP_NAME)
        if status is not None and status.status == "RUNNING":
            return
        said = "nothing yet" if status is None else f"{status.status}: {status.message}"
        if status is not None and status.status == "DEPLOY_FAILED":
            raise RuntimeError(said)
        if time.monotonic() > deadline:
            raise TimeoutError(f"not running after {timeout_s:g} s ({said})")
        time.sleep(0.2)


@functools.cache
def _handle() -> Any:
    """One for the whole run: each keeps a connection to Serve's controller. Its router has a loop of its own, because
    this process calls it from threads that have none."""
    handle = serve.get_app_handle(APP_NAME)
    handle._init(_run_router_in_separate_loop=True)
    return handle


def tell(orders: Orders) -> None:
    """Tell new orders to every replica that runs. Raises TimeoutError or what a replica raised.

    Not by a new user_config: Serve takes a replica out of HAProxy while it reconfigures, and reloads HAProxy twice,
    which costs the requests of that second up to a second (p99 of a run with a turn of the dial every 10 s: 0.7 s).
    """
    handle = _handle()
    told = handle.broadcast("obey", orders.to_user_config()).results(timeout_s=TELL_TIMEOUT_S, return_exceptions=True)
    for outcome in told:
        # One that died is replaced by one that reads the newest orders as it starts.
        if isinstance(outcome, Exception) and not isinstance(outcome, RayActorError):
            raise outcome


def stop_ray() -> None:
    """Drain and end the replicas, then Serve, then Ray; harmless if it never came up."""
    if ray.is_initialized():  # otherwise Serve would start another Ray to shut itself down in
        serve.shutdown()
    ray.shutdown()
