"""What the node process says of the server in a few numbers, on `/healthz`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

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


async def ask_node(host: str, port: int) -> Figures | None:
    """The figures of the node process that listens there; None if it does not answer."""
    body = await node_says(host, port, "/healthz")
    try:
        return None if body is None else Figures.from_json(json.loads(body))
    except (ValueError, KeyError, TypeError):
        return None


async def node_says(host: str, port: int, path: str) -> bytes | None:
    """The body of a page of the node process that listens there; None if it does not answer, or with an error."""
    request = f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port, limit=MAX_REPLY_BYTES)
            try:
                writer.write(request)
                reply = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    head, _, body = reply.partition(b"\r\n\r\n")
    return body if head.startswith(b"HTTP/1.1 200 ") else None
