"""A small bounded HTTP server for `/metrics`: GET only, one answer per connection, nothing but the loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
MAX_HEAD_BYTES = 16_384
TIMEOUT_SECONDS = 5.0
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """A GET request."""

    path: str
    query: dict[str, str]
    accept: str


@dataclass(frozen=True, slots=True)
class Response:
    """What is sent back."""

    body: bytes
    content_type: str = TEXT
    status: int = 200


Handler = Callable[[Request], Response]


class HttpServer:
    """Serves a table of paths."""

    def __init__(self, routes: dict[str, Handler]) -> None:
        """`routes` maps a path to its handler."""
        self._routes = routes
        self._open = 0
        self._servers: list[asyncio.Server] = []
        self._path: str | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError if it is taken."""
        server = await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES, backlog=32)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def start_local(self, path: str) -> None:
        """Listen on a socket in a folder as well, in place of one that was left there. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._servers.append(await asyncio.start_unix_server(self._serve, path, limit=MAX_HEAD_BYTES, backlog=32))
        self._path = path

    async def close(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.close()
        for server in self._servers:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), TIMEOUT_SECONDS)
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > MAX_CONNECTIONS:
                response = Response(b"too many connections; scrape less often\n", status=503)
            else:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                response = self._respond(head)
            writer.write(_encode(response))
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("connection dropped: %r", error)
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), TIMEOUT_SECONDS)

    def _respond(self, head: bytes) -> Response:
        try:
            request_line, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = request_line.split(" ")
            url = urlsplit(target)
        except ValueError:
            return Response(b"not an HTTP request\n", status=400)
        if method != "GET":
            return Response(b"only GET is served here\n", status=405)
        handler = self._routes.get(url.path)
        if handler is None:
            known = ", ".join(sorted(self._routes))
            return Response(f"not found; there are {known}\n".encode(), status=404)
        headers = {name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
        try:
            return handler(Request(url.path, dict(parse_qsl(url.query)), headers.get("accept", "")))
        except Exception:
            log.exception("%s failed", url.path)
            return Response(b"failed; the log of the node process says why\n", status=500)


def _encode(response: Response) -> bytes:
    head = (
        f"HTTP/1.1 {response.status} {_REASONS[response.status]}\r\n"
        f"Content-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + response.body
