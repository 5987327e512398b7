"""What the page shows: the node process's metrics as they are, what the controller wrote, and what the engine holds.

The page reads the metrics itself: a browser's time costs the server no joules, and every figure on the page is one that
`/metrics` has under a name.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from server.engine.engine import Engine
from server.node.figures import node_says
from server.node.grid_state import FILE_NAME
from server.settings import Settings

FRESH_S = 1.0
"""However many pages are open, the node process is asked once in this time."""
MAX_GRID_FILE_BYTES = 100_000

Scrape = Callable[[], Awaitable[bytes | None]]
Tunables = Callable[[], Mapping[str, Any]]


class ConsoleData:
    """Puts it together, at most once a second."""

    def __init__(
        self,
        engine: Engine,
        tunables: Tunables,
        *,
        scrape: Scrape,
        grid_file: Path,
        tunable: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`scrape` gives the exposition, or None if the node process does not answer; `tunable`: `/admin` is open to
        whoever has a key."""
        self._engine = engine
        self._tunables = tunables
        self._scrape = scrape
        self._grid_file = grid_file
        self._tunable = tunable
        self._clock = clock
        self._held: bytes | None = None
        self._held_at = float("-inf")
        self._making = asyncio.Lock()

    async def current(self) -> bytes:
        """The JSON document; equal for all who ask within `FRESH_S`."""
        async with self._making:
            if self._held is None or self._clock() - self._held_at >= FRESH_S:
                self._held = orjson.dumps(await self._make())
                self._held_at = self._clock()
            return self._held

    async def _make(self) -> dict[str, Any]:
        scraped = await self._scrape()
        family = self._engine.family
        manifest = family.manifest
        return {
            "at_s": time.time(),
            "node": socket.gethostname(),
            "family": manifest.family,
            "version": family.version,
            "accuracy_name": manifest.accuracy_name,
            "points": [point.model_dump(exclude_none=True) for point in manifest.points],
            "energy_source": manifest.variant(manifest.points[0].variant).evidence.energy_source,
            "dial": self._engine.dial.to_dict(),
            "tunables": self._tunables(),
            "grid": await asyncio.to_thread(self._grid),
            "metrics": None if scraped is None else without_comments(scraped),
            "tunable": self._tunable,
        }

    def _grid(self) -> Any:
        """What the controller last wrote; None on a machine that does not share its folder."""
        try:
            with self._grid_file.open("rb") as file:
                return json.loads(file.read(MAX_GRID_FILE_BYTES))
        except (OSError, ValueError):
            return None


def without_comments(exposition: bytes) -> str:
    """The samples alone: half the bytes."""
    lines = exposition.decode("utf-8", "replace").split("\n")
    return "\n".join(line for line in lines if line and not line.startswith("#"))


def console_data(
    engine: Engine, tunables: Tunables, settings: Settings, clock: Callable[[], float] = time.monotonic
) -> ConsoleData:
    """The data of a replica that runs by `settings`; its node process is the one of its machine."""
    return ConsoleData(
        engine,
        tunables,
        scrape=partial(node_says, settings.node_address, "/metrics"),
        grid_file=settings.node_dir / FILE_NAME,
        tunable=settings.server.admin_keys_file is not None,
        clock=clock,
    )
