"""HTTP/1.1 for `POST /predict` alone, below ASGI: what is asked all the time should cost next to nothing.

uvicorn builds a scope, a cycle and messages for each request, which costs more than parsing it. This protocol parses
with the same C parser (httptools), hands the body to `Replies`, and writes head and body in one go. A connection whose
next request is anything else is handed over, bytes and all, to uvicorn's own protocol, which answers and closes it: a
pool of connections must not turn slow one by one. It registers with uvicorn's server, whose shutdown waits for its
requests too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from typing import Any, Protocol, cast

import httptools
import structlog

from server.api.errors import BodyTooLarge, MalformedRequest, error_body
from server.api.http import Headers, Reply

log = structlog.get_logger(__name__)

PREFIX = b"POST /predict HTTP/1."
MAX_PIPELINED = 16
MAX_HEAD_BYTES = 65_536
MAX_LINE_BYTES = 8192
READ_TIMEOUT_S = 30.0
INTERNAL_ERROR = Reply(500, error_body("internal error; the server's log has it", "Backend"))
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Answers(Protocol):
    """What answers a body: `server.api.app.Replies`."""

    max_body_bytes: int

    async def predict(self, body: bytes, quality: bytes | None, is_gone: Any) -> Reply | None:
        """The reply, or None if the client has left."""

    def refuse(self, error: Any) -> Reply:
        """The reply to a request that cannot be read."""


class _Request:
    __slots__ = ("begun", "body", "complete_head", "expects_continue", "keep_alive", "quality", "size", "too_large")

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self.body: list[bytes] = []
        self.size = 0
        self.quality: bytes | None = None
        self.complete_head = False
        self.expects_continue = False
        self.too_large = False
        self.keep_alive = True


class FastHttp(asyncio.Protocol):
    """One connection. Its arguments are those that uvicorn gives its own protocol class, and `answers` and `slow`,
    which is that class."""

    def __init__(
        self, answers: Answers, slow: Any, config: Any, server_state: Any, app_state: Any, _loop: Any = None
    ) -> None:
        self._answers, self._slow = answers, slow
        self._slow_arguments = {"config": config, "server_state": server_state, "app_state": app_state, "_loop": _loop}
        self._state = server_state
        self._loop = _loop or asyncio.get_event_loop()
        self._keep_alive_s: float = config.timeout_keep_alive
        self._parser: Any = httptools.HttpRequestParser(self)
        self._reading: _Request | None = None
        self._waiting: deque[_Request] = deque()
        self._busy = False
        self._gone = False
        self._draining = False  # answer what was asked, then close
        self._refused = False  # read nothing more: what follows cannot be told apart, or is not for this lane
        self._head = b""
        self._head_bytes = 0
        self._last_active = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._state.connections.add(self)
        self._last_active = self._loop.time()
        self._timer = self._loop.call_later(self._keep_alive_s, self._close_if_idle)

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True
        self._state.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._last_active = self._loop.time()
        if self._refused:
            return
        if self._reading is None:
            data = self._head + data
            if b"\r\n" not in data and len(data) < MAX_LINE_BYTES:
                self._head = data
                return
            self._head = b""
            if not data.startswith(PREFIX):
                self._hand_over(data)
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # refused when its head was complete
        except httptools.HttpParserError as error:
            self._refuse(MalformedRequest(f"not HTTP/1.1 ({error})"))
        if self._reading is not None and not self._reading.complete_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(MalformedRequest(f"headers: more than {MAX_HEAD_BYTES} bytes; send fewer or shorter ones"))

    def eof_received(self) -> bool | None:
        return None

    def pause_writing(self) -> None:
        self._transport.pause_reading()  # who does not read its replies gets to ask no more

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    # uvicorn's server

    def shutdown(self) -> None:
        """End after what was asked is answered."""
        self._draining = True
        if not self._busy and self._reading is None:
            self._transport.close()

    # httptools' parser

    def on_message_begin(self) -> None:
        self._reading = _Request(self._loop.time())
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        if url != b"/predict":
            # Another route right behind a request for this one: unanswered, its client asks again elsewhere.
            self._refused = True

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._reading
        assert request is not None
        name = name.lower()
        if name == b"x-quality":
            request.quality = value if request.quality is None else request.quality
        elif name == b"content-length":
            request.too_large = value.isdigit() and int(value) > self._answers.max_body_bytes
        elif name == b"expect":
            request.expects_continue = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        request = self._reading
        assert request is not None
        request.complete_head = True
        request.keep_alive = self._parser.should_keep_alive()
        if self._parser.get_method() != b"POST":
            self._refused = True
        elif self._parser.should_upgrade():
            self._refuse(MalformedRequest("upgrade: not served here; send a plain HTTP/1.1 request"))
        elif request.too_large:
            self._refuse(BodyTooLarge(f"body: more than {self._answers.max_body_bytes} bytes"))
        elif request.expects_continue:
            self._transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        request = self._reading
        if request is None or request.too_large:
            return
        request.size += len(body)
        if request.size > self._answers.max_body_bytes:
            request.too_large = True
            self._refuse(BodyTooLarge(f"body: more than {self._answers.max_body_bytes} bytes"))
            return
        request.body.append(body)

    def on_message_complete(self) -> None:
        request, self._reading = self._reading, None
        if request is None or request.too_large or self._refused:
            self._refused = True
            if not self._busy:
                self._transport.close()
            return
        if self._busy:
            self._waiting.append(request)
            if len(self._waiting) >= MAX_PIPELINED:
                self._transport.pause_reading()
        else:
            self._start(request)

    # answering

    def _start(self, request: _Request) -> None:
        self._busy = True
        self._state.total_requests += 1
        task = self._loop.create_task(self._answer(request))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    async def _answer(self, request: _Request) -> None:
        body = request.body[0] if len(request.body) == 1 else b"".join(request.body)
        reply: Reply | None
        try:
            reply = await self._answers.predict(body, request.quality, self._is_gone)
        except asyncio.CancelledError:
            self._transport.abort()
            raise
        except Exception:
            log.exception("a request failed unexpectedly")
            reply = INTERNAL_ERROR
        if reply is None or self._gone:
            self._transport.abort()
            return
        pending = bool(self._waiting)
        last = not request.keep_alive or ((self._draining or self._refused) and not pending)
        self._transport.write(self._render(reply, last))
        self._busy = False
        self._last_active = self._loop.time()
        if last:
            self._transport.close()
        elif pending:
            self._start(self._waiting.popleft())
            self._transport.resume_reading()

    def _is_gone(self) -> bool:
        return self._gone

    def _render(self, reply: Reply, last: bool) -> bytes:
        standing: Headers = self._state.default_headers
        head = [
            _STATUS_LINES[reply.status],
            b"content-type: application/json\r\ncontent-length: %d\r\n" % len(reply.body),
            *(b"%b: %b\r\n" % pair for pair in standing),
            *(b"%b: %b\r\n" % pair for pair in reply.headers),
            b"connection: close\r\n\r\n" if last else b"\r\n",
            reply.body,
        ]
        return b"".join(head)

    def _refuse(self, error: Exception) -> None:
        """Answer a request that cannot be read, and close: what follows cannot be told apart any more."""
        self._refused = True
        if not self._busy and not self._transport.is_closing():
            self._transport.write(self._render(self._answers.refuse(error), last=True))
            self._transport.close()

    def _hand_over(self, data: bytes) -> None:
        """Let uvicorn's own protocol have the connection, from this request on."""
        if self._busy:
            self._refused = True  # a pipelined stranger: its client asks again on another connection
            return
        self._state.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        slow = self._slow(**self._slow_arguments)
        self._transport.set_protocol(slow)
        slow.connection_made(self._transport)
        line, _, rest = data.partition(b"\r\n")
        slow.data_received(line + b"\r\nconnection: close\r\n" + rest)

    def _close_if_idle(self) -> None:
        """Looks once in a keep-alive time instead of setting a timer for each request."""
        now = self._loop.time()
        if self._reading is not None and now - self._reading.begun > READ_TIMEOUT_S:
            self._transport.abort()  # a request that trickles in for ever
            return
        idle_s = now - self._last_active
        if self._busy or idle_s < self._keep_alive_s:
            wait_s = self._keep_alive_s if self._busy else self._keep_alive_s - idle_s
            self._timer = self._loop.call_later(wait_s, self._close_if_idle)
        else:
            self._transport.close()
