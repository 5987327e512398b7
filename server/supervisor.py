"""`jouleserve up`: the node process, Ray Serve and the conductor, started, kept and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import threading
import time
from typing import Any

import httpx
import structlog

from server.addresses import joined
from server.conductor import Conductor, absolute
from server.exposure import check_exposure
from server.fit import FitWatch
from server.jobs.desk import JobDesk, open_desk
from server.jobs.link import JobsListener
from server.lean import InnerPorts, lean_environment, proxy_dir, write_haproxy_wrapper
from server.lifetime import Say, check_ports, deaf_to_hangup, run_until, take_signals
from server.node.child import NodeChild
from server.node.figures import Figures, ask_node
from server.orders import Orders
from server.settings import Settings
from server.start_error import StartError

ANSWER_TIMEOUT_S = 30.0

log = structlog.get_logger(__name__)


class Supervisor:
    """Owns everything that `jouleserve up` starts. `say` prints a line for the person who started it."""

    def __init__(self, settings: Settings, say: Say) -> None:
        """Raises StoreError, SettingsError or StartError if it could not serve; nothing is started then."""
        self._settings = absolute(settings)
        self._say = say
        self._run_dir = self._settings.server.run_dir
        self._stopping = asyncio.Event()
        self._using_ray = threading.Lock()
        self._ending = False
        self._conductor = Conductor(self._settings, self._hand_over, say)
        check_ports(self._settings)
        check_exposure(self._settings, say)
        self._node = NodeChild(self._settings) if self._settings.energy.node_dir is None else None
        self._fit = FitWatch(self._figures, say, edge=False)
        self._desk: JobDesk | None = None
        self._listener: JobsListener | None = None

    async def run(self) -> None:
        """Start, serve until SIGINT, SIGTERM or SIGHUP, stop. Raises StartError if something does not come up."""
        self._run_dir.mkdir(parents=True, exist_ok=True)
        take_signals(self._stopping.set)
        try:
            await self._start_node()
            await self._conductor.look()
            await self._open_jobs()
            # On the main thread, and with nothing else to do meanwhile: Ray sets signal handlers of its own there,
            # under which SIGTERM would end this process at once; ours take their place again.
            with deaf_to_hangup():
                self._start_serve()
            take_signals(self._stopping.set)
            await self._wait_answering()
            self._say(f"answering: http://{_address(self._settings, 'port')}/predict")
            if self._settings.server.grpc_port is not None:
                self._say(f"gRPC: {_address(self._settings, 'grpc_port')}")
            running = [self._conductor.run(), self._fit.run()]
            if self._node is not None:
                running.append(self._node.keep_alive())
            if self._desk is not None:
                running.append(self._desk.run())
            await run_until(self._stopping, *running)
            await self._fit.end()
        finally:
            await self._stop()

    async def _start_node(self) -> None:
        if self._node is None:
            self._say(f"energy and metrics: those of the node process of {self._settings.node_dir}")
            return
        await self._node.start()
        self._say(f"energy and metrics: http://{_address(self._settings, 'metrics_port')}/metrics")

    async def _open_jobs(self) -> None:
        """This process owns the jobs; replicas ask it. Raises StartError."""
        self._desk = open_desk(self._settings, self._conductor.outlook)
        if self._desk is not None:
            self._listener = JobsListener(self._run_dir, self._desk)
            await self._listener.start()

    async def _figures(self) -> Figures | None:
        return await ask_node(self._settings.node_address)

    def _start_serve(self) -> None:
        try:
            ports = InnerPorts.choose()
            write_haproxy_wrapper(self._run_dir, self._settings.server.host, ports)
            os.environ.update(lean_environment(self._run_dir, ports))
            os.environ.pop("RAY_ADDRESS", None)
            # Ray reads its environment when it is imported.
            from server.deployment import deploy, start_ray

            start_ray(self._settings, cpus=max(2, os.cpu_count() or 1))
            self._conductor.orders.save(self._settings.orders_path)
            deploy(self._settings, self._conductor.orders)
        except Exception as error:  # Ray raises plain Exception where a process of its did not come up
            raise StartError(
                f"Ray Serve did not come up: {error}; its logs are in /tmp/ray/session_latest/logs/serve"
            ) from error
        self._conductor.deployed = True

    async def _wait_answering(self) -> None:
        """HAProxy learns of a replica a moment after Serve calls it running."""
        url = f"http://{_address(self._settings, 'port')}/health"
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        async with httpx.AsyncClient(timeout=2.0) as client:
            while time.monotonic() < deadline:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(url)).status_code == 200:
                        return
                await asyncio.sleep(0.2)
        raise StartError(f"{url} does not answer; Ray Serve's logs are in /tmp/ray/session_latest/logs/serve")

    async def _hand_over(self, orders: Orders) -> None:
        await asyncio.to_thread(self._tell, orders)

    def _tell(self, orders: Orders) -> None:
        from server.deployment import tell

        with self._using_ray:
            # A call to Serve after Ray has stopped would start another Ray, which nobody would end.
            if not self._ending:
                orders.save(self._settings.orders_path)
                try:
                    tell(orders)
                except Exception:  # saved is given: whoever was not told reads them at its next health check
                    log.exception("orders_not_told")

    def _stop_ray(self, module: Any) -> None:
        self._ending = True
        with self._using_ray:
            module.stop_ray()

    async def _stop(self) -> None:
        self._say("stopping: answering what was accepted")
        module: Any = sys.modules.get("server.deployment")
        if module is not None:
            await asyncio.to_thread(self._stop_ray, module)
        if self._listener is not None:
            await self._listener.close()
        if self._desk is not None:
            await self._desk.close()
        if self._node is not None:
            await self._node.stop()
        shutil.rmtree(proxy_dir(self._run_dir), ignore_errors=True)
        self._say("stopped")


def _address(settings: Settings, port_field: str) -> str:
    return joined(settings.server.host, getattr(settings.server, port_field))


def run_supervisor(settings: Settings, say: Say) -> None:
    """Run until stopped."""

    async def run() -> None:
        await Supervisor(settings, say).run()

    asyncio.run(run())
