"""This project's server: behind HAProxy (`jouleserve up`) and in edge mode (`jouleserve up --edge`).

Defaults throughout; asked in the class `strict`, which is always the full point, the model that the peers have. The
cache is off but where the cache is what is measured.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadtest.peers.contestant import DidNotStart, Running, Wire, tei_body
from loadtest.peers.model import ModelFiles
from loadtest.peers.process import running_of
from loadtest.served import serve

HAPROXY = "ours behind HAProxy"
EDGE = "ours, edge mode"
WIRE = Wire("/predict", tei_body, {"x-quality": "strict"})


@dataclass(frozen=True)
class Ours:
    """One mode of our server."""

    name: str
    edge: bool
    settings: Mapping[str, object] = field(default_factory=dict)
    ours: bool = True
    sleeps: bool = False

    def absent(self) -> str | None:
        """Never."""
        return None

    @contextlib.contextmanager
    def running(self, files: ModelFiles, folder: Path) -> Iterator[Running]:
        """Start as a user would. Raises DidNotStart with the end of its log."""
        home = folder / ("edge" if self.edge else "haproxy")
        with contextlib.ExitStack() as stack:
            started = time.perf_counter()
            try:
                served = stack.enter_context(serve(home, self.settings, edge=self.edge))
            except RuntimeError as error:
                raise DidNotStart(str(error)) from error
            ready_s = time.perf_counter() - started
            running = running_of(served.process.pid, served.port, WIRE, ready_s)
            grpc_port = self.settings.get("server.grpc_port")
            yield replace(
                running, metrics_url=served.metrics_url, grpc_port=grpc_port if isinstance(grpc_port, int) else None
            )
