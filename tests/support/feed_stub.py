"""A local server that plays a carbon-intensity API: scripted replies, and what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

PAYLOADS = Path(__file__).parents[1] / "energy" / "grid" / "payloads"


def payload(name: str) -> bytes:
    return (PAYLOADS / name).read_bytes()


def reply(status: int, body: bytes | Mapping[str, Any], *headers: str) -> bytes:
    """A whole HTTP reply."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(raw)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


class Stub:
    """Answers a path by `by_path`, every other request with the next scripted reply, the last one again and again;
    None never answers."""

    def __init__(self) -> None:
        self.replies: list[bytes | None] = []
        self.by_path: dict[str, bytes] = {}
        self.paths: list[str] = []
        self.heads: list[str] = []
        self.url = ""

    def params(self, request: int = -1) -> dict[str, str]:
        """The query of a request."""
        return dict(parse_qsl(urlsplit(self.paths[request]).query))

    def header(self, name: str, request: int = -1) -> str | None:
        """A header of a request."""
        for line in self.heads[request].split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name:
                return value.strip()
        return None

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            self.paths.append(head.split(" ")[1])
            known = self.by_path.get(urlsplit(self.paths[-1]).path)
            if known is None:
                known = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            if known is None:
                await reader.read()
            else:
                writer.write(known)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def listening(stub: Stub) -> AsyncIterator[Stub]:
    """The stub, listening on loopback at `stub.url`."""
    server = await asyncio.start_server(stub.answer, "127.0.0.1", 0)
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield stub
    finally:
        server.close()


class Pauses:
    """Records the pauses between tries instead of waiting."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def dripping(head: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]:
    """An answer of which a byte comes now and then: each read succeeds, the whole never ends."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()

    return answer
