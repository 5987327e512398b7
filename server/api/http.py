"""Small raw-ASGI vocabulary: read a bounded body, send one reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from server.api.errors import BodyTooLarge
from server.engine.engine import never_gone
from server.engine.errors import ClientGone

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete JSON reply; `headers` come beside content type and length."""

    status: int
    body: bytes
    headers: Headers = field(default_factory=list)


async def read_body(receive: Receive, max_bytes: int) -> bytes:
    """The request body. Raises BodyTooLarge past `max_bytes` and ClientGone if the client leaves midway."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client left while sending its request")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise BodyTooLarge(f"body: more than {max_bytes} bytes; send fewer or shorter texts in one request")
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def send_reply(send: Send, reply: Reply) -> None:
    """Send a complete JSON reply."""
    head = [JSON, (b"content-length", b"%d" % len(reply.body)), *reply.headers]
    await send({"type": "http.response.start", "status": reply.status, "headers": head})
    await send({"type": "http.response.body", "body": reply.body})


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header called `name` (lower case), or None."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


def watcher(receive: Receive) -> Callable[[], bool]:
    """A function that says whether the client has left, without waiting and without a task per request.

    uvicorn's `receive` is a method of the cycle that knows; other servers get "never".
    """
    cycle = getattr(receive, "__self__", None)
    if cycle is None or not hasattr(cycle, "disconnected"):
        return never_gone
    return lambda: bool(cycle.disconnected)
