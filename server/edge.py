"""`jouleserve up --edge`: engine, app, node metrics and conductor in this one process, without Ray.

For one small machine or a low rate, where Ray's idle draw would rule. The parts are the same as under Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any

import uvicorn
import uvloop

from energy.calibration import CalibrationError
from energy.coefficients import CoefficientError
from energy.domains import SourceUnavailable
from server.addresses import joined
from server.api.fast_http import FastHttp
from server.conductor import Conductor, absolute
from server.exposure import check_exposure
from server.fit import FitWatch
from server.jobs.desk import JobDesk, open_desk
from server.lifetime import Say, check_ports, run_until, take_signals
from server.node.child import node_settings
from server.node.figures import Figures
from server.node.service import AlreadyRunning, NodeService
from server.replica import Replica
from server.settings import Settings
from server.start_error import StartError

START_TIMEOUT_S = 10.0
ACCEPT_GRACE_S = 0.2
"""Between the signal and the closing of the door: the kernel has accepted connections that the loop has yet to see."""


class Edge:
    """The whole server in one event loop."""

    def __init__(self, settings: Settings, say: Say) -> None:
        """Raises StoreError, SettingsError or StartError if it could not serve; nothing is started then."""
        self._settings = absolute(settings)
        if settings.energy.node_dir is not None:
            raise StartError("energy.node_dir: edge mode meters in its own process; leave it out, or leave --edge out")
        self._say = say
        self._stopping = asyncio.Event()
        self._conductor = Conductor(self._settings, self._hand_over, say)
        check_ports(self._settings)
        check_exposure(self._settings, say)
        self._replica: Replica | None = None

    async def run(self) -> None:
        """Start, serve until SIGINT, SIGTERM or SIGHUP, answer what was accepted, stop."""
        server = self._settings.server
        server.run_dir.mkdir(parents=True, exist_ok=True)
        try:
            node = NodeService(node_settings(self._settings))
        except (AlreadyRunning, SourceUnavailable, CoefficientError, CalibrationError) as error:
            raise StartError(str(error)) from error
        metering = asyncio.create_task(node.run())
        desk: JobDesk | None = None
        try:
            await self._conductor.look()
            desk = open_desk(self._settings, self._conductor.outlook)
            self._replica = Replica(self._settings, self._conductor.opened, None if desk is None else lambda: desk)
            await self._replica.obey(self._conductor.orders)
            self._conductor.deployed = True
            http = self._http_server(self._replica)
            serving = asyncio.create_task(http.serve())
            await _wait_started(http, serving)
            take_signals(self._stopping.set)  # uvicorn has taken them for itself at its start
            self._say(f"energy and metrics: http://{joined(server.host, server.metrics_port)}/metrics")
            self._say(f"answering: http://{joined(server.host, server.port)}/predict (edge: one process, no Ray)")
            if server.grpc_port is not None:
                self._say(f"gRPC: {joined(server.host, server.grpc_port)}")
            fit = FitWatch(partial(_figures, node), self._say, edge=True)
            planning = [] if desk is None else [desk.run()]
            await run_until(self._stopping, self._conductor.run(), asyncio.shield(metering), fit.run(), *planning)
            await fit.end()
            self._say("stopping: answering what was accepted")
            await asyncio.sleep(ACCEPT_GRACE_S)
            http.should_exit = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(serving, server.drain_timeout_s)
        finally:
            try:
                if self._replica is not None:
                    await self._replica.stop()
                if desk is not None:
                    await desk.close()
            finally:
                node.stopping.set()
                await metering
            self._say("stopped")

    async def _hand_over(self, orders: Any) -> None:
        assert self._replica is not None
        await self._replica.obey(orders)

    def _http_server(self, replica: Replica) -> uvicorn.Server:
        server = self._settings.server
        config = uvicorn.Config(
            replica.app,  # type: ignore[arg-type]
            host=server.host,
            port=server.port,
            lifespan="off",
            access_log=False,
            log_level="warning",
            proxy_headers=False,
        )
        config.load()
        config.http_protocol_class = partial(FastHttp, replica.replies, config.http_protocol_class)  # type: ignore[assignment, arg-type]
        return uvicorn.Server(config)


async def _figures(node: NodeService) -> Figures:
    return node.figures()


async def _wait_started(http: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while not http.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
    if serving.done():
        serving.result()
        raise StartError("the HTTP server ended as soon as it started; see the lines above")


def run_edge(settings: Settings, say: Say) -> None:
    """Run until stopped."""

    async def run() -> None:
        await Edge(settings, say).run()

    uvloop.run(run())
