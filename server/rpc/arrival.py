"""What a call may take before it has said anything, and what calls that never end by themselves may take at all.

None of this needs a key, so none of it may use up what calls with one need: a message has a time by which it must be
there, and streams (health watches, reflection) have few places of their own and are ended after a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from server.api.errors import MalformedRequest, SlowRequest
from server.api.http import READ_TIMEOUT_S

MAX_SILENT = 256
"""Calls that may wait for their message at a time."""

Serve = Callable[[AsyncIterator[bytes], Any], Awaitable[None]]


class Arrivals:
    """Messages that are still to come in. A call's own comes with the call, as a rule; whoever lets the server wait may
    do so for READ_TIMEOUT_S, and while no more than MAX_SILENT others do."""

    def __init__(self) -> None:
        self._awaited: dict[asyncio.Timeout, None] = {}  # in the order in which they began

    async def read(self, context: Any) -> bytes:
        """The next message of a call. Raises SlowRequest or MalformedRequest if it does not come."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S) as limit:
                self._make_room()
                self._awaited[limit] = None
                try:
                    raw = await context.read()
                finally:
                    self._awaited.pop(limit, None)
        except TimeoutError:
            raise SlowRequest("message: not complete in time; send it along with the call, and again") from None
        if not isinstance(raw, bytes):
            raise MalformedRequest("message: none was sent; send one of the documented type")
        return raw

    def _make_room(self) -> None:
        """Give up who has been silent for longest, rather than refuse who has just come."""
        if len(self._awaited) >= MAX_SILENT:
            oldest = next(iter(self._awaited))
            del self._awaited[oldest]
            oldest.reschedule(0)


def parse(message_type: type[Message], raw: bytes) -> Any:
    """A message of that type. Raises MalformedRequest."""
    try:
        return message_type.FromString(raw)
    except (DecodeError, UnicodeDecodeError):
        raise MalformedRequest("message: not of the documented type, or a text in it is not UTF-8") from None


class Streams:
    """Streams of one kind: at most `most` at a time, each ended after `most_s` seconds."""

    def __init__(self, most: int, most_s: float) -> None:
        self._free = most
        self._most_s = most_s

    def handler(self, serve: Serve) -> Any:
        """A method handler around `serve`, which is given raw messages and writes messages."""

        async def answer(requests: AsyncIterator[bytes], context: Any) -> None:
            if not self._free:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many such streams; end some of them")
            self._free -= 1
            try:
                async with asyncio.timeout(self._most_s):
                    await serve(requests, context)
            except TimeoutError:
                await context.abort(grpc.StatusCode.UNAVAILABLE, f"ended after {self._most_s:g} s; ask again")
            except MalformedRequest as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            finally:
                self._free += 1

        return grpc.stream_stream_rpc_method_handler(answer, response_serializer=_serialize)


def _serialize(message: Message) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw
