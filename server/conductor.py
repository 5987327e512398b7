"""What every way of serving has in common: the orders in force and the three things that change them.

The grid turns the dial, an operator tunes, a new version is published: each becomes new orders, handed over to whoever
runs the replicas (`server.supervisor` under Ray, `server.edge` without).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from energy.grid.ladder import Outlook
from models.store import Store, StoreError, Version, write_atomic
from server.config_problems import SettingsError
from server.node import model_file
from server.node.figures import ask_node
from server.node.model_file import CompileCost, encode_costs
from server.orders import Orders
from server.settings import Settings
from server.shaping.controller import Ask, ShapingController
from server.shaping.policy import DialState
from server.shaping.providers import make_ladder, past_of
from server.shaping.tunables import Tunables, check_points
from server.shaping.tuning import begin
from server.shaping.watching import TuningWatcher

log = structlog.get_logger(__name__)

STORE_PERIOD_S = 2.0

HandOver = Callable[[Orders], Awaitable[None]]


def absolute(settings: Settings) -> Settings:
    """The settings with absolute folders: replicas have another working directory."""
    keys = settings.server.api_keys_file
    admin = settings.server.admin_keys_file
    folders = {
        "run_dir": settings.server.run_dir.resolve(),
        "api_keys_file": keys and keys.absolute(),
        "admin_keys_file": admin and admin.absolute(),
    }
    server = settings.server.model_copy(update=folders)
    model = settings.model.model_copy(update={"store": settings.model.store.resolve()})
    node_dir = settings.energy.node_dir
    energy = settings.energy.model_copy(update={"node_dir": node_dir and node_dir.resolve()})
    password = settings.cache.redis_password_file
    cache = settings.cache.model_copy(update={"redis_password_file": password and password.absolute()})
    jobs = settings.jobs.model_copy(update={"path": settings.jobs.path and settings.jobs.path.absolute()})
    changed = {"server": server, "model": model, "cache": cache, "energy": energy, "jobs": jobs}
    return settings.model_copy(update=changed)


class Conductor:
    """Keeps the orders. `hand_over` makes replicas follow them; before `deployed` is set, orders are only kept."""

    def __init__(
        self,
        settings: Settings,
        hand_over: HandOver,
        say: Callable[[str], None],
        *,
        ask: Ask | None = None,
        first_version: int = 0,
    ) -> None:
        """Open the model. `ask` gives the server's figures (by default those of this machine's node process);
        `first_version` is that of the settings' tunables: above those of a conductor that the replicas outlived.

        Raises StoreError if there is no version that is sound, SettingsError if the settings do not fit it.
        """
        self._settings = settings
        self._hand_over = hand_over
        self._store = Store(settings.model.store)
        self._refused: set[tuple[str, int]] = set()
        self._handing_over = asyncio.Lock()
        self.deployed = False
        self.opened = version = self._open_model(say)
        self._points = points = version.manifest.points
        tunables = Tunables.of(settings).model_copy(update={"version": first_version})
        self._check(tunables)
        self.orders = Orders(tunables, DialState.initial(points, tunables.shaping), version.name)
        ladder = make_ladder(settings)
        self.outlook: Outlook = ladder
        """What is known of the grid, for whoever plans by it."""
        self._controller = ShapingController(
            ladder,
            points,
            tunables.shaping,
            settings.node_dir / "grid.json",
            self._push_dial,
            ask=ask or partial(ask_node, settings.node_address),
            state_file=settings.policy_state_path,
            past=past_of(settings.grid),
        )
        self._watcher = TuningWatcher(settings.tuning_path, tunables, self._check)

    async def look(self) -> None:
        """Write what can be tuned and look at the grid once, so that the replicas start with the right dial."""
        begin(self._settings.tuning_path, self.orders.tunables)
        self._tell_costs(self.opened)
        await self._controller.step()

    async def run(self) -> None:
        """Follow the grid, the tuning file and the store until cancelled."""
        tasks = [
            asyncio.create_task(self._controller.run()),
            asyncio.create_task(self._watcher.watch(self._push_tunables)),
            asyncio.create_task(self._watch_store()),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _open_model(self, say: Callable[[str], None]) -> Version:
        model = self._settings.model
        if model.version is not None:
            return self._store.open(model.family, model.version)
        version, refused = self._store.open_newest_sound(model.family)
        for message in refused:
            log.error("version_refused", kept=version.name, why=message)
            say(f"refused a corrupt version: {message}; serving {version.name} instead")
        if refused:
            self._refused.add(self._current())
        return version

    def _check(self, tunables: Tunables) -> None:
        """Raise SettingsError if the settings name a point that the version in force does not have."""
        check_points(point.name for point in self._points)(tunables)

    async def _push_dial(self, dial: DialState) -> None:
        await self._push(dial=dial)

    async def _push_tunables(self, tunables: Tunables) -> None:
        await self._push(tunables=tunables)
        self._controller.retune(tunables.shaping)

    async def _push(self, **changes: Any) -> None:
        """Hand over the orders in force with `changes`; one at a time, so that none undoes another."""
        async with self._handing_over:
            orders = replace(self.orders, **changes)
            if self.deployed:
                await self._hand_over(orders)
            self.orders = orders

    async def _watch_store(self) -> None:
        """Follow the store's current version, unless the settings fix one."""
        stamp = ("", 0)
        while self._settings.model.version is None:
            await asyncio.sleep(STORE_PERIOD_S)
            try:
                stamp = self._current()
                if stamp[0] != self.orders.version and stamp not in self._refused:
                    await self._take(stamp[0])
            except (StoreError, SettingsError) as error:
                self._refused.add(stamp)
                log.error("version_refused", version=stamp[0], kept=self.orders.version, why=str(error))
            except Exception:
                log.exception("version_not_pushed")

    async def _take(self, name: str) -> None:
        version = await asyncio.to_thread(self._store.open, self._settings.model.family, name)
        points = version.manifest.points
        check_points(point.name for point in points)(self.orders.tunables)
        self._points = points
        await self._push(version=name, dial=self._controller.serve_points(points))
        await asyncio.to_thread(self._tell_costs, version)
        log.info("version_pushed", version=name)

    def _tell_costs(self, version: Version) -> None:
        """Let the node process know what compiling the version took."""
        manifest = version.manifest
        costs = [
            CompileCost(
                manifest.family,
                variant.name,
                variant.evidence.compile_joules,
                variant.evidence.compile_cpu_seconds,
                variant.evidence.energy_source,
                variant.evidence.energy_relative_uncertainty,
            )
            for variant in manifest.variants
            if not variant.reference
        ]
        try:
            write_atomic(self._settings.node_dir / model_file.FILE_NAME, encode_costs(costs))
        except OSError as error:  # a figure less is no reason not to serve
            log.warning("compile_costs_not_written", error=str(error))

    def _current(self) -> tuple[str, int]:
        """The current version, and when it was made current: published again, a refused one is tried again."""
        family = self._settings.model.family
        name = self._store.current(family)
        return name, (self._store.root / family / "current").stat().st_mtime_ns
