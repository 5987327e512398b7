"""`jouleserve up`: starts the node process, Ray Serve and the controller, orders the replicas about, stops it all."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from models.store import Store, StoreError, Version
from server.config_problems import SettingsError
from server.lean import InnerPorts, lean_environment, proxy_dir, write_haproxy_wrapper
from server.node.settings import NodeSettings
from server.replica import Orders
from server.settings import Settings
from server.shaping.controller import ShapingController
from server.shaping.policy import DialState
from server.shaping.providers import make_ladder
from server.shaping.tuning import Tunables, TuningWatcher, check_points, save
from server.start_error import StartError

log = structlog.get_logger(__name__)

NODE_START_TIMEOUT_S = 10.0
STORE_PERIOD_S = 2.0


class Supervisor:
    """Owns everything that `jouleserve up` starts. `say` prints a line for the person who started it."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        run_dir = settings.server.run_dir.resolve()
        server = settings.server.model_copy(update={"run_dir": run_dir})
        model = settings.model.model_copy(update={"store": settings.model.store.resolve()})
        self.settings = settings.model_copy(update={"server": server, "model": model})
        self._say = say
        self._run_dir = run_dir
        self._store = Store(model.store)
        self._node: subprocess.Popen[bytes] | None = None
        self._stopping = asyncio.Event()
        self._deploying = asyncio.Lock()
        self._deployed = False
        self._refused: set[str] = set()
        # The same for every deploy of this run: changed orders then reconfigure replicas instead of replacing them.
        self._code_version = hashlib.sha256(f"{os.getpid()}-{time.time_ns()}".encode()).hexdigest()[:12]

    async def run(self) -> None:
        """Start, serve until SIGINT or SIGTERM, stop. Raises StoreError or StartError if it cannot start."""
        version = self._open_model()
        self._check_ports()
        self._run_dir.mkdir(parents=True, exist_ok=True)
        tunables = Tunables.of(self.settings)
        check = check_points(point.name for point in version.manifest.points)
        check(tunables)
        save(self.settings.tuning_path, tunables)
        dial = DialState.initial(version.manifest.points, tunables.shaping)
        self._orders = Orders(tunables, dial, version.name)
        self._take_signals()
        try:
            await self._start_node()
            self._controller = self._make_controller(version)
            await self._controller.step()  # so that the replicas start with the right dial
            # On the main thread, and with nothing else to do meanwhile: Ray sets signal handlers of its own there,
            # under which SIGTERM would end this process at once; ours take their place again.
            self._start_serve()
            self._take_signals()
            self._watcher = TuningWatcher(self.settings.tuning_path, tunables, check)
            await self._serve()
        finally:
            await self._stop()

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            loop.add_signal_handler(number, self._stopping.set)

    def _open_model(self) -> Version:
        family = self.settings.model.family
        if self.settings.model.version is not None:
            return self._store.open(family, self.settings.model.version)
        version, refused = self._store.open_newest_sound(family)
        for message in refused:
            log.error("version_refused", kept=version.name, why=message)
            self._say(f"refused a corrupt version: {message}; serving {version.name} instead")
        if refused:
            self._refused.add(self._store.current(family))
        return version

    def _check_ports(self) -> None:
        server = self.settings.server
        for field, port in (("port", server.port), ("metrics_port", server.metrics_port)):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((server.host, port))
                except OSError as error:
                    raise StartError(
                        f"server.{field}: cannot listen on {server.host}:{port} ({error.strerror}); "
                        f"stop what does, or give another one: --set server.{field}=…"
                    ) from None

    async def _start_node(self) -> None:
        server, energy = self.settings.server, self.settings.energy
        node = NodeSettings(
            run_dir=self._run_dir,
            host=server.host,
            port=server.metrics_port,
            root_pid=os.getpid(),
            energy_source=energy.source,
            cpu_family=energy.cpu_family,
            pue=energy.pue,
            tick_seconds=energy.tick_s,
        )
        command = [sys.executable, "-m", "server.node", *node.to_arguments()]
        with (self._run_dir / "node.log").open("ab") as output:
            # Not asyncio's: `_stop` must reach it when the loop is going down.
            self._node = subprocess.Popen(  # noqa: ASYNC220
                command, stdout=output, stderr=output, start_new_session=True
            )
        await self._wait_for_node()
        self._say(f"energy and metrics: http://{server.host}:{server.metrics_port}/metrics")

    async def _wait_for_node(self) -> None:
        server = self.settings.server
        deadline = time.monotonic() + NODE_START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._node is not None
            if self._node.poll() is not None:
                break
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(server.host, server.metrics_port)
                writer.close()
                return
            await asyncio.sleep(0.1)
        raise StartError(
            f"the node process did not come up on {server.host}:{server.metrics_port}; see {self._run_dir / 'node.log'}"
        )

    def _start_serve(self) -> None:
        ports = InnerPorts.choose()
        write_haproxy_wrapper(self._run_dir, ports)
        os.environ.update(lean_environment(self._run_dir, ports))
        # Ray reads its environment when it is imported.
        from server.deployment import deploy, start_ray

        start_ray(self.settings, cpus=max(2, os.cpu_count() or 1))
        deploy(self.settings, self._orders, code_version=self._code_version)
        self._deployed = True
        self._say(f"answering: http://{self.settings.server.host}:{self.settings.server.port}/predict")

    def _make_controller(self, version: Version) -> ShapingController:
        return ShapingController(
            make_ladder(self.settings),
            version.manifest.points,
            self._orders.tunables.shaping,
            self._run_dir / "grid.json",
            self._push_dial,
        )

    async def _serve(self) -> None:
        tasks = [
            asyncio.create_task(self._controller.run()),
            asyncio.create_task(self._watcher.watch(self._push_tunables)),
            asyncio.create_task(self._watch_store()),
            asyncio.create_task(self._watch_node()),
        ]
        await self._stopping.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _push_dial(self, dial: DialState) -> None:
        await self._push(dial=dial)

    async def _push_tunables(self, tunables: Tunables) -> None:
        await self._push(tunables=tunables)
        self._controller.retune(tunables.shaping)

    async def _push(self, **changes: Any) -> None:
        """Hand the replicas the orders in force with `changes`; one push at a time, so that none undoes another."""
        async with self._deploying:
            orders = replace(self._orders, **changes)
            if self._deployed:
                from server.deployment import deploy

                await asyncio.to_thread(deploy, self.settings, orders, code_version=self._code_version)
            self._orders = orders

    async def _watch_store(self) -> None:
        """Follow the store's current version, unless the settings fix one."""
        family, name = self.settings.model.family, ""
        while self.settings.model.version is None:
            await asyncio.sleep(STORE_PERIOD_S)
            try:
                name = self._store.current(family)
                if name == self._orders.version or name in self._refused:
                    continue
                version = await asyncio.to_thread(self._store.open, family, name)
                check_points(point.name for point in version.manifest.points)(self._orders.tunables)
                dial = DialState.initial(version.manifest.points, self._orders.tunables.shaping)
                newer = replace(dial, version=self._orders.dial.version + 1)
                await self._push(version=name, dial=newer)
                self._controller.serve_points(version.manifest.points)
                log.info("version_pushed", version=name)
            except (StoreError, SettingsError) as error:
                self._refused.add(name)
                log.error("version_refused", version=name, kept=self._orders.version, why=str(error))
            except Exception:
                log.exception("version_not_pushed")

    async def _watch_node(self) -> None:
        """Restart the node process if it dies; its totals are on disk."""
        while True:
            await asyncio.sleep(1.0)
            if self._node is not None and self._node.poll() is not None:
                log.error("node_died", code=self._node.returncode)
                try:
                    await self._start_node()
                except StartError:
                    log.exception("node_not_restarted")
                    await asyncio.sleep(10.0)

    async def _stop(self) -> None:
        self._say("stopping: answering what was accepted")
        module: Any = sys.modules.get("server.deployment")
        if module is not None:
            await asyncio.to_thread(module.stop_ray)
        if self._node is not None and self._node.poll() is None:
            self._node.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._node.wait, 10)
            if self._node.poll() is None:
                self._node.kill()
        shutil.rmtree(proxy_dir(self._run_dir), ignore_errors=True)
        self._say("stopped")


def run_supervisor(settings: Settings, say: Callable[[str], None]) -> None:
    """Run until stopped."""
    asyncio.run(Supervisor(settings, say).run())
