"""Small raw-ASGI vocabulary: read a bounded body, send one reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.api.errors import BodyTooLarge, SlowRequest, error_body
from server.engine.engine import never_gone
from server.engine.errors import ClientGone

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
READ_TIMEOUT_S = 30.0
"""Seconds that a request may take to arrive."""
MAX_HEAD_BYTES = 65_536
LINGER_S = 2.0
"""Seconds for which a refused client may go on sending, unheard, so that it gets to read why."""
CHUNK_COST = 8
"""Bytes that a byte of a body may take on the wire: a chunk of one takes six."""


class Head(Protocol):
    """What `/predict` reads of a request's head; None where the header is missing."""

    quality: bytes | None
    authorization: bytes | None
    traceparent: bytes | None
    session: bytes | None


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete JSON reply; `headers` come beside content type and length."""

    status: int
    body: bytes
    headers: Headers = field(default_factory=list)


INTERNAL_ERROR = Reply(500, error_body("internal error; the server's log has it", "Backend"))


@dataclass(slots=True)
class PlainHead:
    """A head that was read already."""

    quality: bytes | None = None
    authorization: bytes | None = None
    traceparent: bytes | None = None
    session: bytes | None = None


def head_of(scope: Scope) -> PlainHead:
    """The head of an ASGI request. Of several headers of a name the first counts; two `traceparent` are none."""
    head = PlainHead()
    for name, value in scope["headers"]:
        if name == b"x-quality" and head.quality is None:
            head.quality = value
        elif name == b"authorization" and head.authorization is None:
            head.authorization = value
        elif name == b"x-session" and head.session is None:
            head.session = value
        elif name == b"traceparent":
            head.traceparent = value if head.traceparent is None else b""
    return head


def body_too_large(max_bytes: int) -> BodyTooLarge:
    """The one wording of it."""
    return BodyTooLarge(f"body: more than {max_bytes} bytes; send fewer or shorter texts in one request")


def declares_more_than(scope: Scope, max_bytes: int) -> bool:
    """Whether the request announces a body over the limit."""
    declared = header(scope, b"content-length")
    return declared is not None and declared.isdigit() and int(declared) > max_bytes


async def read_body(receive: Receive, max_bytes: int, timeout_s: float) -> bytes:
    """The request body. Raises BodyTooLarge past `max_bytes`, SlowRequest past `timeout_s`, and ClientGone if the
    client leaves midway."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _read_body(receive, max_bytes)
    except TimeoutError:
        raise SlowRequest(f"body: not complete after {timeout_s:g} s; send the request again") from None


async def _read_body(receive: Receive, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client left while sending its request")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise body_too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


class Replay:
    """The `receive` of a request whose body was read already: gives the body, then what comes after it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self._gone = watcher(receive)

    @property
    def disconnected(self) -> bool:
        """Whether the client has left, where the server can tell (see `watcher`)."""
        return self._gone()

    async def receive(self) -> Message:
        """The next ASGI message."""
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


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
