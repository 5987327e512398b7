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
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Protocol, cast

import httptools
import structlog

from server.api.errors import MalformedRequest, SlowRequest
from server.api.http import (
    INTERNAL_ERROR,
    LINGER_S,
    READ_TIMEOUT_S,
    Head,
    Headers,
    Reply,
    body_too_large,
)
from server.api.incoming import Incoming
from server.api.intake import Intake
from server.api.slow_lane import SlowLane
from server.engine.errors import EngineError, Overloaded
from server.guard import Guard

log = structlog.get_logger(__name__)

PREFIX = b"POST /predict HTTP/1."
MAX_PIPELINED = 16
MAX_LINE_BYTES = 8192
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_ONCE = {b"x-quality": "quality", b"authorization": "authorization", b"x-session": "session"}
_READ = {*_ONCE, b"traceparent", b"content-length", b"expect"}
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Answers(Protocol):
    """What answers a body: `server.api.replies.Replies`."""

    max_body_bytes: int
    guard: Guard | None
    intake: Intake

    async def predict(self, body: bytes, head: Head, is_gone: Any) -> Reply | None:
        """The reply, or None if the client has left."""

    def refuse(self, error: EngineError) -> Reply:
        """The reply to a request that cannot be read, or may not be asked."""


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
        self._standing: Headers | None = None
        self._standing_lines = b""
        self._parser: Any = httptools.HttpRequestParser(self)
        self._reading: Incoming | None = None
        self._waiting: deque[Incoming] = deque()
        self._busy = False
        self._gone = False
        self._write_paused = False  # the client does not read its replies
        self._draining = False  # answer what was asked, then close
        self._lingering = False  # the last word is said; what the client still sends is thrown away
        self._refused = False  # read nothing more: what follows cannot be told apart, or is not for this lane
        self._line = b""  # the first line of a request, as long as it is not complete
        self._line_begun = 0.0
        self._completed = False  # whether a request ended in the piece that is being parsed
        self._last_active = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected; one too many is told so and sent away."""
        self._transport = cast(asyncio.Transport, transport)
        most = self._answers.intake.max_connections
        if len(self._state.connections) >= most:
            self._refused = True
            full = Overloaded(f"connections: {most} are open already; keep fewer, and reuse them", 1.0)
            self._transport.write(self._render(self._answers.refuse(full), last=True))
            self._transport.close()
            return
        self._state.connections.add(self)
        self._last_active = self._loop.time()
        self._timer = self._loop.call_later(min(self._keep_alive_s, READ_TIMEOUT_S), self._close_if_idle)

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone, and with it what was not read or answered yet."""
        self._gone = True
        self._state.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._reading is not None:
            self._reading.give_back(self._answers.intake)
        while self._waiting:
            self._waiting.popleft().give_back(self._answers.intake)

    def data_received(self, data: bytes) -> None:
        """Some bytes came: to be parsed, or handed to the slow lane where the first line is not for this one."""
        self._last_active = self._loop.time()
        if self._refused:
            return
        if not self._line:
            self._line_begun = self._last_active
        if self._reading is None:
            data = self._line + data
            if b"\r\n" not in data and len(data) < MAX_LINE_BYTES:
                self._line = data
                return
            self._line = b""
            if not data.startswith(PREFIX):
                self._other(data)
                return
        self._completed = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # refused when its head was complete
        except httptools.HttpParserError as error:
            self._refuse(MalformedRequest(f"not HTTP/1.1 ({error})"))
        if self._reading is not None and not self._completed:
            self._bound(self._reading, len(data))

    def _bound(self, request: Incoming, more: int) -> None:
        """Refuse a request whose bytes do not come to an end: headers, trailers, what is around chunks. A piece in
        which another request ends is not counted."""
        endless = request.endless(more, self._answers.max_body_bytes)
        if endless is not None:
            self._refuse(endless)
        else:
            request.hold(more, self._answers.intake)

    def eof_received(self) -> bool | None:
        """The client sends no more: close, as the default has it."""
        return None

    def pause_writing(self) -> None:
        """The client does not read its replies."""
        self._write_paused = True
        self._transport.pause_reading()  # who does not read its replies gets to ask no more

    def resume_writing(self) -> None:
        """The client reads again."""
        self._write_paused = False
        self._next()

    # uvicorn's server

    def shutdown(self) -> None:
        """End after what was asked is answered."""
        self._draining = True
        if not self._busy and not self._waiting and self._reading is None:
            self._transport.close()

    # httptools' parser

    def on_message_begin(self) -> None:
        """A request begins."""
        self._reading = Incoming(self._line_begun)

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        assert self._reading is not None
        self._reading.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer; those of `_READ` are kept."""
        name = name.lower()
        if name not in _READ:
            return
        request = self._reading
        assert request is not None
        if request.complete_head:
            return  # a trailer says nothing
        if name == b"content-length":
            request.too_large = value.isdigit() and int(value) > self._answers.max_body_bytes
        elif name == b"expect":
            request.expects_continue = value.lower() == b"100-continue"
        elif name == b"traceparent":
            request.traceparent = value if request.traceparent is None else b""
        elif getattr(request, _ONCE[name]) is None:
            setattr(request, _ONCE[name], value)

    def on_headers_complete(self) -> None:
        """The head is complete: what can be refused by it alone is refused before the body comes."""
        request = self._reading
        assert request is not None
        request.complete_head = True
        request.keep_alive = self._parser.should_keep_alive()
        if self._answers.guard is not None:
            self._check_key(self._answers.guard, request)
        if request.url != b"/predict" or self._parser.get_method() != b"POST":
            # Something else right behind a request for this route: unanswered, its client asks again elsewhere.
            self._refused = True
        elif self._parser.should_upgrade():
            self._refuse(MalformedRequest("upgrade: not served here; send a plain HTTP/1.1 request"))
        elif request.too_large:
            self._refuse(body_too_large(self._answers.max_body_bytes))
        elif request.expects_continue and request.refusal is not None:
            self._refuse(request.refusal)  # its body may come or not: what follows cannot be told apart
        elif request.expects_continue and self._parser.get_http_version() != "1.0":  # which knows no such reply
            self._transport.write(CONTINUE)

    def _check_key(self, guard: Guard, request: Incoming) -> None:
        """Before anything of the body is kept."""
        try:
            guard.admit(request.authorization, 0)
        except EngineError as error:
            request.refusal = error

    def on_body(self, body: bytes) -> None:
        """A piece of the body, kept up to the limit."""
        request = self._reading
        if request is None or request.too_large:
            return
        request.size += len(body)
        if request.size > self._answers.max_body_bytes:
            request.too_large = True
            self._refuse(body_too_large(self._answers.max_body_bytes))
            return
        if request.refusal is None:
            request.body.append(body)

    def on_message_complete(self) -> None:
        """The request is complete: answer it, or put it behind those that came before."""
        self._completed = True
        request, self._reading = self._reading, None
        if request is None or request.too_large or self._refused:
            self._refused = True
            if not self._busy and not self._waiting and not self._lingering:
                self._transport.close()
            return
        if self._busy or self._write_paused:
            request.hold(request.size - request.held_bytes, self._answers.intake)
            self._waiting.append(request)
            if len(self._waiting) >= MAX_PIPELINED:
                self._transport.pause_reading()
        else:
            self._start(request)

    # answering

    def _start(self, request: Incoming) -> None:
        self._busy = True
        self._state.total_requests += 1
        self._task = self._loop.create_task(self._answer(request))
        self._state.tasks.add(self._task)

    async def _answer(self, request: Incoming) -> None:
        task = self._task
        try:
            await self._reply_to(request)
        finally:
            self._state.tasks.discard(task)
            if request.held_bytes:
                request.give_back(self._answers.intake)

    async def _reply_to(self, request: Incoming) -> None:
        body = request.body[0] if len(request.body) == 1 else b"".join(request.body)
        reply: Reply | None
        try:
            if request.refusal is None:
                reply = await self._answers.predict(body, request, self._is_gone)
            else:
                reply = self._answers.refuse(request.refusal)
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
            self._next()

    def _next(self) -> None:
        """Begin with the next request that waits, and read on, unless the client does not read its replies."""
        if self._write_paused or self._transport.is_closing():
            return
        if self._waiting and not self._busy:
            self._start(self._waiting.popleft())
        if len(self._waiting) < MAX_PIPELINED:
            self._transport.resume_reading()

    def _is_gone(self) -> bool:
        return self._gone

    def _render(self, reply: Reply, last: bool) -> bytes:
        if self._state.default_headers is not self._standing:  # uvicorn makes a new list each second, for the date
            self._standing = self._state.default_headers
            self._standing_lines = b"".join(b"%b: %b\r\n" % pair for pair in self._standing)
        head = [
            _STATUS_LINES[reply.status],
            b"content-type: application/json\r\ncontent-length: %d\r\n" % len(reply.body),
            self._standing_lines,
        ]
        for name, value in reply.headers:
            head += (name, b": ", value, b"\r\n")
        head += (b"connection: close\r\n\r\n" if last else b"\r\n", reply.body)
        return b"".join(head)

    def _refuse(self, error: EngineError, status: int | None = None) -> None:
        """Answer a request that cannot be read, and close: what follows cannot be told apart any more.

        The client may still be sending; were the connection closed at once, the reset would take the answer from it. So
        only our direction ends, and what comes is thrown away for a moment. `status` is for what only HTTP knows.
        """
        if self._refused:
            return
        self._refused = True
        reply = self._answers.refuse(error)
        if status is not None:
            reply = replace(reply, status=status)
        if not self._busy and not self._waiting and not self._transport.is_closing():
            self._lingering = True
            self._transport.write(self._render(reply, last=True))
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._loop.call_later(LINGER_S, self._transport.abort)

    def _other(self, data: bytes) -> None:
        """Take what does not begin as a request for this lane."""
        begun = data.lstrip(b"\r\n")  # empty lines may stand before a request: RFC 9112, 2.2
        if len(begun) < len(data):
            if begun:
                self.data_received(begun)
            return
        line, end, rest = data.partition(b"\r\n")
        if self._busy or self._waiting:
            self._refused = True  # a pipelined stranger: its client asks again on another connection
        elif not end or len(line) > MAX_LINE_BYTES:
            self._refuse(MalformedRequest(f"request line: more than {MAX_LINE_BYTES} bytes; send a shorter one"), 414)
        else:
            self._hand_over(line + b"\r\nconnection: close\r\n" + rest)

    def _hand_over(self, data: bytes) -> None:
        """Let uvicorn's own protocol have the connection, from this request on."""
        self._state.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        inner = self._slow(**self._slow_arguments)
        slow = SlowLane(inner, self._loop, self._line_begun, self._answers.intake, self._answers.max_body_bytes)
        self._transport.set_protocol(slow)
        slow.connection_made(self._transport)
        slow.data_received(data)

    def _close_if_idle(self) -> None:
        """Looks now and then instead of setting a timer for each request; often enough to see one that trickles in
        no later than at its limit."""
        now = self._loop.time()
        begun = self._reading.begun if self._reading is not None else self._line_begun if self._line else None
        left_s = READ_TIMEOUT_S if begun is None else READ_TIMEOUT_S - (now - begun)
        if left_s <= 0:
            if self._busy or self._refused:
                self._transport.abort()
            else:
                self._refuse(SlowRequest(f"request: not complete after {READ_TIMEOUT_S:g} s; send it again"))
            return
        idle_s = now - self._last_active
        if self._busy or begun is not None or idle_s < self._keep_alive_s:
            if not self._busy and begun is None:
                left_s = min(left_s, self._keep_alive_s - idle_s)
            self._timer = self._loop.call_later(left_s, self._close_if_idle)
        elif self._transport.get_write_buffer_size():
            self._transport.abort()  # it does not read what it asked for
        else:
            self._transport.close()
