"""What the node process says of the server in a few numbers, on `/healthz`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from server.node import wire

ASK_TIMEOUT_S = 5.0
MAX_REPLY_BYTES = 4_000_000


@dataclass(frozen=True)
class Figures:
    """Of the serving tree."""

    startup_cpu_seconds: float | None
    """CPU time until the first replica was ready; None before, and after the node process was restarted."""
    startup_joules: float | None
    """What that added to idling; None as long as the rate is not known."""
    requests: int
    """Texts asked for so far, however they ended; kept over restarts."""
    cpu_seconds: float
    """CPU time since the node process began."""
    joules: float | None = None
    """Measured joules of the server (idling included, other processes not); kept over restarts."""
    standard_texts: int = 0
    """Those of `requests` that came to the engine in the class standard, which the dial turns for: no jobs, nothing
    that was refused before."""
    node: str = ""
    """The name of these totals, as long as they are kept: they go on under it over restarts."""

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """Take them out of `/healthz`. Raises KeyError if they are not there."""
        return cls(**{field.name: tree[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class NodeAddress:
    """Where a machine's node process answers."""

    host: str
    port: int
    folder: Path | None = None
    """Run folder of a node process that runs apart, in a network of its own: it is asked by a socket there."""

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises OSError, or ValueError for a folder whose path is too long."""
        if self.folder is None:
            return await asyncio.open_connection(self.host, self.port, limit=MAX_REPLY_BYTES)
        return await asyncio.open_unix_connection(self.socket, limit=MAX_REPLY_BYTES)

    @property
    def socket(self) -> str | None:
        """The path of that socket; None for one that is asked by its port."""
        return None if self.folder is None else wire.socket_path(self.folder, wire.PAGES_SOCKET)


async def ask_node(address: NodeAddress) -> Figures | None:
    """The figures of the node process that listens there; None if it does not answer."""
    body = await node_says(address, "/healthz")
    try:
        return None if body is None else Figures.from_json(json.loads(body))
    except (ValueError, KeyError, TypeError):
        return None


async def node_says(address: NodeAddress, path: str) -> bytes | None:
    """The body of a page of the node process that listens there; None if it does not answer, or with an error."""
    request = f"GET {path} HTTP/1.1\r\nhost: {address.host}\r\n\r\n".encode()
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            reader, writer = await address.connect()
            try:
                writer.write(request)
                reply = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return None
    head, _, body = reply.partition(b"\r\n\r\n")
    return body if head.startswith(b"HTTP/1.1 200 ") else None
