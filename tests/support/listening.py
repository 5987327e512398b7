"""The app under a real uvicorn server on a free port, with both of its lanes: `/predict` takes the short one, and with
a query behind it the long one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import uvicorn

from server.api.app import App
from server.api.fast_http import FastHttp
from server.api.replies import Replies
from server.engine.family import Family
from server.guard import Guard
from tests.support.engines import RecordingUsage, WatchedEngine, running

LANES = {"fast": "/predict", "asgi": "/predict?long=1"}
BODY = b'{"inputs": "my refund"}'
MAX_BODY_BYTES = 2000
IDLE_TURNS = 10


class NoJoules:
    """A node process that is not there."""

    joules_per_cpu_second = None
    loaded_ratio = None
    sources: tuple[str, ...] = ()


class PromptServer(uvicorn.Server):
    """Looks every few milliseconds whether it is to end, instead of every tenth of a second."""

    async def main_loop(self) -> None:
        """See uvicorn."""
        while not await self.on_tick(0):  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)


class Running:
    """A server on a free port, and what it was told and counts."""

    def __init__(self, server: uvicorn.Server, replies: Replies, engine: WatchedEngine, usage: RecordingUsage) -> None:
        self.server, self.replies, self.engine, self.usage = server, replies, engine, usage
        self.port: int = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def raw(self, *parts: bytes, pause_s: float = 0.0, silence_s: float = 1.0) -> bytes:
        """Send the parts one after the other and return everything until the server closes or is silent."""
        return (await self.talk(*parts, pause_s=pause_s, silence_s=silence_s))[0]

    async def talk(self, *parts: bytes, pause_s: float = 0.0, silence_s: float = 1.0) -> tuple[bytes, bool]:
        """As `raw`, and whether the server has closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with contextlib.suppress(ConnectionError):
            for number, part in enumerate(parts):
                await asyncio.sleep(pause_s if number else 0)
                writer.write(part)
                await writer.drain()
        received, closed = b"", True
        try:
            while chunk := await self._more(reader, silence_s, answered=bool(received)):
                received += chunk
        except TimeoutError:
            closed = False
        except ConnectionError:
            pass
        writer.close()
        return received, closed

    async def _more(self, reader: asyncio.StreamReader, silence_s: float, answered: bool) -> bytes:
        """What comes next. Raises TimeoutError if nothing does: for `silence_s` or, once something was answered, for a
        few turns of the loop, which the server has, too, in which it works on no request."""
        reading = asyncio.ensure_future(reader.read(65536))
        deadline, idle = time.monotonic() + silence_s, 0
        while not reading.done() and idle < IDLE_TURNS and time.monotonic() < deadline:
            await asyncio.wait([reading], timeout=0.005)
            idle = idle + 1 if answered and not self.server.server_state.tasks else 0
        if reading.done():
            return reading.result()
        reading.cancel()
        raise TimeoutError


def post(body: bytes = BODY, *headers: str, path: str = "/predict") -> bytes:
    """A request with its length."""
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(*chunks: bytes, path: str = "/predict", end: bytes = b"0\r\n\r\n") -> bytes:
    """A request whose length is not announced."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


@asynccontextmanager
async def listening(
    family: Family, *, guard: Guard | None = None, tracer: Any = None, keep_alive_s: int = 5, **limits: Any
) -> AsyncIterator[Running]:
    """Serve the family; stopped in good order at the end."""
    async with running(family, **limits) as (engine, usage):
        replies = Replies(engine, NoJoules(), MAX_BODY_BYTES, usage, guard, tracer)
        config = uvicorn.Config(
            App(replies, dict),  # type: ignore[arg-type]
            host="127.0.0.1",
            port=0,
            lifespan="off",
            log_level="critical",
            access_log=False,
            timeout_keep_alive=keep_alive_s,
        )
        config.load()
        config.http_protocol_class = partial(FastHttp, replies, config.http_protocol_class)  # type: ignore
        server = PromptServer(config)
        task = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            yield Running(server, replies, engine, usage)
        finally:
            server.should_exit = True
            await task
