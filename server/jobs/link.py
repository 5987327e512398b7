"""The way from a replica to the owner of the jobs on one machine: calls over a UNIX socket in the run folder.

A frame is four bytes of length and msgpack; calls follow one another. What a connection has leased is given back when
it ends, so that the texts of a replica that died are computed elsewhere at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import structlog

from server.engine.errors import NotReady
from server.jobs.calls import JobsCalls, answer
from server.jobs.port import JobsPort
from server.node.wire import own_socket_dir, socket_path

log = structlog.get_logger(__name__)

SOCKET = "jobs.sock"
MAX_FRAME_BYTES = 256 << 20


class JobsLink(JobsCalls):
    """A `JobsPort` over a connection of its own, which is made anew when it is lost."""

    def __init__(self, run_dir: Path) -> None:
        """Nothing is opened before the first call. Raises ValueError if the path is too long for a socket."""
        self._path = socket_path(run_dir, SOCKET)
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._calling = asyncio.Lock()

    async def close(self) -> None:
        """Let the connection go."""
        if self._connection is not None:
            self._connection[1].close()
            self._connection = None

    async def carry(self, method: str, arguments: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        """See `JobsCalls`."""
        async with self._calling:
            whole = False
            try:
                async with asyncio.timeout(timeout_s):
                    if self._connection is None:
                        self._connection = await asyncio.open_unix_connection(self._path)
                    reader, writer = self._connection
                    await _send(writer, [method, arguments])
                    reply: Sequence[Any] = await _receive(reader)
                whole = True
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                raise NotReady("jobs: their owner cannot be reached from here; ask again in a moment") from error
            finally:
                if not whole:  # a reply that comes later would be taken for that to another call
                    await self.close()
        return reply


class JobsListener:
    """The owner's end: answers calls by its desk."""

    def __init__(self, run_dir: Path, desk: JobsPort) -> None:
        """Nothing is opened before `start`. Raises ValueError if the path is too long for a socket."""
        self._run_dir, self._desk = run_dir, desk
        self._path = socket_path(run_dir, SOCKET)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises OSError."""
        own_socket_dir(self._run_dir)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)  # of a run that was killed; two owners are kept apart by the jobs' file
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        os.chmod(self._path, 0o600)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        leases: set[int] = set()
        try:
            while True:
                method, arguments = await _receive(reader)
                reply = await answer(self._desk, method, arguments)
                if method in ("give", "give_back"):
                    leases.discard(arguments[0])
                elif method == "take" and reply[0] == "ok" and reply[1] is not None:
                    leases.add(reply[1][0])
                await _send(writer, reply)
        except (OSError, EOFError, ValueError, TypeError) as error:
            log.debug("jobs_link_ended", why=repr(error))
        finally:
            for lease_id in leases:
                await self._desk.give_back(lease_id)
            writer.close()


async def _send(writer: asyncio.StreamWriter, message: Any) -> None:
    data: bytes = msgpack.packb(message)
    writer.write(len(data).to_bytes(4, "big") + data)
    await writer.drain()


async def _receive(reader: asyncio.StreamReader) -> Any:
    """Raises EOFError (IncompleteReadError is one) at the end, ValueError for what is no frame."""
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return msgpack.unpackb(await reader.readexactly(length))
