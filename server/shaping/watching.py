"""Notices that the tuning file says something else, whoever wrote it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from server.config_problems import SettingsError
from server.shaping.tunables import Check, Tunables
from server.shaping.tuning import adopt, load

log = structlog.get_logger(__name__)


class TuningWatcher:
    """Notices changes of the file by a `stat` per period (idle cost: microseconds), and validates them."""

    def __init__(self, path: Path, current: Tunables, check: Check | None = None) -> None:
        self.path = path
        self.current = current
        self._check = check
        self._seen: tuple[int, int, int] | None = None

    def poll(self) -> Tunables | None:
        """The new tunables if the file changed and is valid, else None.

        An invalid content is logged once and `current` stays. A hand edit need not count the version up.
        """
        try:
            stat = self.path.stat()
        except OSError:
            self._seen = None
            return None
        signature = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if signature == self._seen:
            return None
        self._seen = signature
        try:
            found = load(self.path)
            if self._check is not None:
                self._check(found)
        except SettingsError as error:
            log.error("tuning_refused", path=str(self.path), problems=error.problems, kept=self.current.version)
            return None
        if found.same_values(self.current):
            return None
        try:
            found = adopt(self.path, self.current)
        except (
            SettingsError,
            OSError,
        ) as error:  # it changed again meanwhile, or the disk is full: the next look tells
            log.warning("tuning_not_recorded", path=str(self.path), error=str(error))
            found = found.model_copy(update={"version": max(found.version, self.current.version + 1)})
        self.current = found
        return self.current

    async def watch(self, on_change: Callable[[Tunables], Awaitable[None]], period_s: float = 1.0) -> None:
        """Poll until cancelled and await `on_change` with every new valid content.

        A failing `on_change` is logged and tried again at the next period, so that no change is lost.
        """
        pending: Tunables | None = None
        while True:
            pending = self.poll() or pending
            if pending is not None:
                try:
                    await on_change(pending)
                except Exception:
                    log.exception("tuning_not_pushed", version=pending.version)
                else:
                    log.info("tuning_taken", version=pending.version)
                    pending = None
            await asyncio.sleep(period_s)
