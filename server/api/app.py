"""The ASGI app of a replica: raw ASGI on the hot route and the probes, FastAPI for the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol

import structlog

from server.admin import Admin
from server.api.errors import error_body, error_row, retry_after_s
from server.api.http import (
    INTERNAL_ERROR,
    READ_TIMEOUT_S,
    Head,
    Headers,
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
from server.api.intake import Intake
from server.api.predict import answer_headers, parse_predict, parse_quality, render_predictions
from server.api.told import Told, tell
from server.console.data import ConsoleData
from server.engine.engine import Answer, Engine, UsageSink, never_gone
from server.engine.errors import ClientGone, EngineError, NotReady
from server.engine.family import Family
from server.guard import Guard, Unauthenticated
from server.jobs.port import JobsPort
from server.shaping.policy import QualityClass
from server.tracing import RequestTrace, Tracer

log = structlog.get_logger(__name__)

RELEASE = version("jouleserve")
BODILESS = {"GET", "HEAD", "OPTIONS"}
PROBES = {"/health", "/live"}
JOBS_PATH = "/jobs"
OPEN_PATHS = PROBES | {
    *("/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"),
    *("/console", "/console/data"),
}
"""Served without an API key: whether the server is well, what every JouleServe's interface looks like, and the figures
that `/metrics` shows without one, too."""


class Joules(Protocol):
    """What turns CPU time into provisional joules; a replica's `NodeLink`."""

    joules_per_cpu_second: float | None
    loaded_ratio: float | None
    sources: tuple[str, ...]


class JobsIntake(NamedTuple):
    """Who keeps the jobs, and the largest body and most texts of one."""

    port: JobsPort
    max_body_bytes: int
    max_texts: int


class Replies:
    """Turns a `/predict` body into a reply; knows no protocol."""

    def __init__(
        self,
        engine: Engine,
        joules: Joules,
        max_body_bytes: int,
        usage: UsageSink,
        guard: Guard | None = None,
        tracer: Tracer | None = None,
        jobs: JobsIntake | None = None,
    ) -> None:
        """`usage` is told of what never reaches the engine; without `guard`, `tracer` and `jobs` there is nothing of
        theirs."""
        self.engine = engine
        self.max_body_bytes = max_body_bytes
        self.jobs = jobs
        self.intake = Intake(max_body_bytes)
        self.guard = guard
        self.tracer = tracer
        self._joules = joules
        self._usage = usage

    async def predict(self, body: bytes, head: Head, is_gone: Callable[[], bool] = never_gone) -> Reply | None:
        """The reply to a body, errors included; None if the client has left."""
        trace = None if self.tracer is None else self.tracer.begin(head.traceparent)
        engine = self.engine
        family = engine.family
        quality: QualityClass = "standard"
        taken = 0
        try:
            request = parse_predict(body, engine.limits.max_texts_per_request)
            quality = parse_quality(head.quality)
            if self.guard is not None:
                self.guard.admit(head.authorization, len(request.texts))
                taken = len(request.texts)
            answers = await engine.predict(
                request.texts,
                quality=quality,
                truncate=request.truncate,
                is_gone=is_gone,
                session=head.session or None,
            )
        except EngineError as error:
            if taken and self.guard is not None:
                self.guard.forgive(error, head.authorization, taken)
            return self._failed(error, quality, trace)
        except BaseException as error:  # a span that is not ended is never sent
            if trace is not None:
                trace.failed(error)
            raise
        headers = answer_headers(self.tell(answers, family))
        if trace is not None:
            self.trace_answered(trace, answers, quality)
            headers.append(trace.answered(answers))
        return Reply(200, render_predictions(request, answers, family.manifest), headers)

    def trace_answered(self, trace: RequestTrace, answers: list[Answer], quality: QualityClass) -> None:
        """Let the metrics point to a recorded trace."""
        if (trace_id := trace.recorded_id) is not None:
            cpu_ns = sum(answer.cpu_ns for answer in answers)
            self._usage.traced(trace_id, answers[0].variant, quality, trace.elapsed_ns, cpu_ns)

    def tell(self, answers: list[Answer], family: Family) -> Told:
        """What to say of the answers of one request."""
        joules = self._joules
        return tell(answers, joules.joules_per_cpu_second, joules.sources, family.version, joules.loaded_ratio)

    def refuse(self, error: EngineError, quality: QualityClass = "standard") -> Reply:
        """The reply to a request that ends with `error`; counted, unless the engine has done so."""
        self.note(error, quality)
        return error_reply(error)

    def note(self, error: EngineError, quality: QualityClass = "standard") -> None:
        """Count a request that was refused before the engine looked at its texts."""
        if not error.counted:
            self._usage.request("", "", quality, "refused", 0)

    def _failed(self, error: EngineError, quality: QualityClass, trace: RequestTrace | None) -> Reply | None:
        told = None if trace is None else trace.failed(error)
        if isinstance(error, ClientGone):
            return None
        reply = self.refuse(error, quality)
        if told is not None:
            reply.headers.append(told)
        return reply


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


def error_reply(error: EngineError) -> Reply:
    """An error in text-embeddings-inference's body shape."""
    status, error_type, _ = error_row(error)
    wait_s = retry_after_s(error)
    headers: Headers = [] if wait_s is None else [(b"retry-after", b"%d" % wait_s)]
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    return Reply(status, error_body(str(error), error_type), headers)


WRONG_METHOD = Reply(405, error_body("send POST /predict", "Validation"), [(b"allow", b"POST")])


def describe_family(engine: Engine) -> dict[str, Any]:
    """What is served: text-embeddings-inference's `/info` fields, then ours."""
    family, limits = engine.family, engine.limits
    manifest = family.manifest
    labels = {str(index): label for index, label in enumerate(manifest.labels)}
    return {
        "model_id": manifest.family,
        "model_sha": family.version,
        "model_dtype": manifest.variant(manifest.points[0].variant).precision,
        "model_type": {"classifier": {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}},
        "max_input_length": manifest.max_tokens,
        "max_batch_tokens": limits.batch.max_tokens,
        "max_batch_requests": limits.batch.max_rows,
        "max_client_batch_size": limits.max_texts_per_request,
        "max_concurrent_requests": limits.max_queue_requests,
        "auto_truncate": False,
        "tokenization_workers": 1,
        "version": RELEASE,
        "task": manifest.task,
        "pair": manifest.pair,
        "points": [point.model_dump() for point in manifest.points],
        "dial": engine.dial.to_dict(),
        "cache": {"entries": len(engine.cache), "bytes": engine.cache.size_bytes},
        "queued": engine.queued,
    }
