"""What the node process says of the server in a few numbers, on `/healthz`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

ASK_TIMEOUT_S = 5.0
_REQUEST = b"GET /healthz HTTP/1.1\r\n\r\n"


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

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """Take them out of `/healthz`. Raises KeyError if they are not there."""
        return cls(**{field.name: tree[field.name] for field in fields(cls)})


async def ask_node(host: str, port: int) -> Figures | None:
    """The figures of the node process that listens there; None if it does not answer."""
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_REQUEST)
                reply = await reader.read()
            finally:
                writer.close()
        return Figures.from_json(json.loads(reply.partition(b"\r\n\r\n")[2]))
    except (OSError, TimeoutError, ValueError, KeyError, TypeError):
        return None
