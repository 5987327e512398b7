"""Bounds around uvicorn's own protocol, which has none for a request's head and for the time that it takes to come."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from server.api.http import CHUNK_COST, LINGER_S, MAX_HEAD_BYTES, READ_TIMEOUT_S
from server.api.intake import Intake


class SlowLane(asyncio.Protocol):
    """Hands everything to `inner` (uvicorn's protocol, for one request), as long as it keeps within the bounds.

    A connection whose head grows beyond `MAX_HEAD_BYTES`, or that sends as much in a row that is not of the body, whose
    head is not complete after `READ_TIMEOUT_S`, or for which there is no room in `intake`, is ended without an answer.
    The body's size and the time it takes are the application's to bound.
    """

    def __init__(
        self, inner: Any, loop: asyncio.AbstractEventLoop, begun: float, intake: Intake, max_body_bytes: int
    ) -> None:
        """`begun` is when the request's first byte came, by the loop's clock."""
        self._inner = inner
        self._loop = loop
        self._intake = intake
        self._max_around_bytes = MAX_HEAD_BYTES + CHUNK_COST * max_body_bytes
        self._held_bytes = 0
        self._around_bytes = 0  # what came and was none of the body
        self._bare_bytes = 0  # the same, since the last piece that had any of the body in it
        self._lingering = False
        self._timer = loop.call_at(begun + READ_TIMEOUT_S, self._look)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(_Ours(self._transport, self))

    def data_received(self, data: bytes) -> None:
        """Hand it on, unless the request is complete, or would never be."""
        if self._lingering or not self._incomplete():
            return
        kept = self._kept_bytes()
        self._inner.data_received(data)
        if not self._incomplete():
            return
        more = self._kept_bytes() - kept
        self._bare_bytes = 0 if more else self._bare_bytes + len(data)
        self._around_bytes += len(data) - more
        if self._bare_bytes > MAX_HEAD_BYTES or self._around_bytes > self._max_around_bytes:
            self._transport.abort()
        elif self._intake.take(len(data)):
            self._held_bytes += len(data)
        else:
            self._transport.abort()

    def _kept_bytes(self) -> int:
        """Bytes of the body that the application has yet to take."""
        return 0 if self._inner.cycle is None else len(self._inner.cycle.body)

    def eof_received(self) -> bool | None:
        """Hand it on."""
        answer: bool | None = self._inner.eof_received()
        return answer

    def connection_lost(self, error: Exception | None) -> None:
        """Hand it on."""
        self._timer.cancel()
        self._intake.give(self._held_bytes)
        self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        """Hand it on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Hand it on."""
        self._inner.resume_writing()

    @property
    def closing(self) -> bool:
        """Whether the last word is said."""
        return self._lingering or self._transport.is_closing()

    def close(self) -> None:
        """Close after what was written. To a client that still sends, only our direction is closed, and what comes is
        thrown away for a moment: a reset would take the answer from it."""
        if self.closing:
            return
        self._timer.cancel()
        if not self._incomplete() or not self._transport.can_write_eof():
            self._timer = self._loop.call_later(READ_TIMEOUT_S, self._transport.abort)  # it may never read the reply
            self._transport.close()
            return
        self._lingering = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._timer = self._loop.call_later(LINGER_S, self._transport.abort)

    def _incomplete(self) -> bool:
        cycle = self._inner.cycle
        return cycle is None or bool(cycle.more_body)

    def _look(self) -> None:
        """End a request whose head has not come. One whose body has not is the application's to refuse, in words;
        should it not, it is ended when the application's own time is up for certain."""
        if self._inner.cycle is None:
            self._transport.abort()
        elif self._incomplete():
            self._timer = self._loop.call_later(READ_TIMEOUT_S + LINGER_S, self._transport.abort)


class _Ours:
    """The transport as uvicorn's protocol sees it: closing it is the lane's business."""

    def __init__(self, transport: asyncio.Transport, lane: SlowLane) -> None:
        self._transport, self._lane = transport, lane

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._lane.close()

    def is_closing(self) -> bool:
        return self._lane.closing
