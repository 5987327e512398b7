"""The ASGI app of a replica: raw ASGI on the hot route and the probes, FastAPI for the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from server.admin import Admin
from server.api.errors import error_body
from server.api.http import (
    INTERNAL_ERROR,
    READ_TIMEOUT_S,
    Message,
    Receive,
    Replay,
    Reply,
    Scope,
    Send,
    body_too_large,
    declares_more_than,
    head_of,
    header,
    read_body,
    send_reply,
    watcher,
)
from server.api.paths import JOBS_PATH, OPEN_PATHS, PROBES
from server.api.replies import Replies, error_reply
from server.console.data import ConsoleData
from server.engine.errors import ClientGone, EngineError, NotReady

log = structlog.get_logger(__name__)

BODILESS = {"GET", "HEAD", "OPTIONS"}
WRONG_METHOD = Reply(405, error_body("send POST /predict", "Validation"), [(b"allow", b"POST")])


class App:
    """ASGI 3 application."""

    def __init__(
        self,
        replies: Replies,
        status: Callable[[], dict[str, Any]],
        console: ConsoleData | None = None,
        admin: Admin | None = None,
    ) -> None:
        """Without `console` and `admin` there are no such pages."""
        self._replies = replies
        self._status = status
        self._console = console
        self._admin = admin
        self._rest: asyncio.Task[Any] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request (or a lifespan message)."""
        if scope["type"] != "http":
            await (await self._built())(scope, receive, send)
            return
        started = False

        async def tell(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._answer(scope, receive, tell)
        except Exception:
            log.exception("a request failed unexpectedly")
            if not started:
                await send_reply(send, INTERNAL_ERROR)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES and scope["method"] in ("GET", "HEAD"):
            await send_reply(send, self._probe(scope["path"]))
            return
        try:
            self._check_key(scope)
            bodiless = scope["method"] in BODILESS or scope["path"] in OPEN_PATHS
            body = None if bodiless else await self._body(scope, receive)
        except ClientGone:
            return
        except EngineError as error:
            await send_reply(send, self._replies.refuse(error))
            return
        if scope["path"] != "/predict":
            rest = await self._built()
            await rest(scope, receive if body is None else Replay(body, receive).receive, send)
        elif body is None or scope["method"] != "POST":
            await send_reply(send, WRONG_METHOD)
        else:
            reply = await self._replies.predict(body, head_of(scope), watcher(receive))
            if reply is not None:
                await send_reply(send, reply)

    async def _built(self) -> Any:
        """The cold routes. FastAPI takes as long to import as half the server: whoever asks first waits for it, in
        place of everybody who waits for the server to start."""
        if self._rest is None:
            self._rest = asyncio.create_task(asyncio.to_thread(self._build))
        building = self._rest
        try:
            return await asyncio.shield(building)
        except Exception:
            if self._rest is building:
                self._rest = None  # the next to ask tries again
            raise

    def _build(self) -> Any:
        from server.api.rest import build_rest

        return build_rest(self._replies, self._status, self._console, self._admin)

    def _probe(self, path: str) -> Reply:
        """Alive is who answers; ready is whose engine takes requests."""
        if path == "/live" or self._replies.engine.ready:
            return Reply(200, b"{}", [])
        return error_reply(NotReady("the server is stopping, or a worker of it has died"))

    def _check_key(self, scope: Scope) -> None:
        """Before anything of the body is read. Raises Unauthenticated or AdminClosed."""
        if self._admin is not None and scope["path"].startswith("/admin/"):
            self._admin.admit(header(scope, b"authorization"))
            return
        guard = self._replies.guard
        if guard is not None and scope["path"] not in OPEN_PATHS:
            guard.admit(header(scope, b"authorization"), 0)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, whatever the route. Raises BodyTooLarge, SlowRequest or ClientGone."""
        jobs = self._replies.jobs
        most = self._replies.max_body_bytes
        if jobs is not None and scope["path"] == JOBS_PATH:
            most = jobs.max_body_bytes
        if declares_more_than(scope, most):
            raise body_too_large(most)
        return await read_body(receive, most, READ_TIMEOUT_S)
