"""Ray Serve wiring, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import ray
from ray import serve

from server.fast_lane import open_fast_lane
from server.lean import APP_NAME, ray_init_arguments
from server.orders import Orders
from server.settings import Settings

# Serve's own queue in front of a replica must never fill before the engine's, which answers 429 in good form.
MAX_ONGOING_REQUESTS = 100_000
DEPLOY_TIMEOUT_S = 120.0


@serve.ingress()
class _Ingress:
    """The replica inside a Serve actor."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # Here, so that the driver, which only ships this class, does not load the runtime.
        from server.replica import Replica

        self._settings = Settings.model_validate(settings)
        self._replica = Replica(self._settings)
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

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve once after the constructor and then at each change of the user_config."""
        await self._replica.obey(Orders.from_user_config(user_config))
        if self._lane is None and self._settings.server.fast_lane and self._replica.replies is not None:
            self._lane = asyncio.create_task(open_fast_lane(self._replica.replies))

    async def check_health(self) -> None:
        """Raises when the replica should be replaced."""
        engine = self._replica.engine
        if engine is None or not engine.healthy:
            raise RuntimeError("the engine has not started, or a worker of it has died")

    async def __del__(self) -> None:
        await self._replica.stop()


def start_ray(settings: Settings, *, cpus: int) -> None:
    """Start a Ray node and Serve's controller and proxy in it. The lean environment must be set already."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(**ray_init_arguments(cpus=cpus, dashboard=settings.server.dashboard))
    if not settings.server.dashboard:
        _retire_watchers()
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.server.host, "port": settings.server.port},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )


def _retire_watchers() -> None:
    """End the processes that only watch: they idle at about 0.8 CPU-seconds a minute and hold 300 MiB.

    The log monitor forwards log lines to drivers (switched off anyway), the monitor scales clusters, the dashboard's
    head without its pages reports usage (switched off too). `ray.init` has no argument to leave them out.
    """
    from ray._private.worker import _global_node

    for retire in ("kill_log_monitor", "kill_monitor", "kill_dashboard"):
        kill = getattr(_global_node, retire, None)
        if kill is not None:
            kill(check_alive=False)


def deploy(settings: Settings, orders: Orders, *, code_version: str) -> None:
    """Deploy, or hand new orders to the replicas that run.

    `code_version` stays the same as long as only the orders change: Serve then reconfigures the replicas in place
    instead of replacing them.
    """
    options: dict[str, Any] = {
        "name": APP_NAME,
        "num_replicas": 1,
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "ray_actor_options": {"num_cpus": 1},
        "user_config": orders.to_user_config(),
        "health_check_period_s": 10,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": settings.server.drain_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
    }
    deployment = serve.deployment(_Ingress).options(**options)
    # Serve makes a random version for each `serve.run`, which would restart the replicas at each turn of the dial.
    deployment = deployment.options(version=code_version, _internal=True)
    arguments = settings.model_dump(mode="json")
    serve._run(deployment.bind(arguments), name=APP_NAME, route_prefix="/", _blocking=False)
    _wait_running(DEPLOY_TIMEOUT_S)


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


def stop_ray() -> None:
    """Drain and end the replicas, then Serve, then Ray."""
    serve.shutdown()
    ray.shutdown()
