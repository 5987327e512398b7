"""The ASGI app of a replica: raw ASGI on the hot route, FastAPI for the rest."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from math import ceil
from typing import Any, Protocol

from fastapi import FastAPI
from fastapi.responses import Response

from server.api.docs import render_docs
from server.api.errors import error_body, http_error
from server.api.http import Headers, Receive, Reply, Scope, Send, header, read_body, send_reply, watcher
from server.api.openapi import describe_predict
from server.api.predict import answer_headers, parse_predict, parse_quality, render_predictions
from server.engine.engine import Engine, never_gone
from server.engine.errors import ClientGone, EngineError, NotReady, Overloaded

RELEASE = version("jouleserve")


class Joules(Protocol):
    """What turns CPU time into provisional joules; a replica's `NodeLink`."""

    joules_per_cpu_second: float | None
    sources: tuple[str, ...]


class Replies:
    """Turns a `/predict` body into a reply; knows no protocol."""

    def __init__(self, engine: Engine, joules: Joules, max_body_bytes: int) -> None:
        self.engine = engine
        self.max_body_bytes = max_body_bytes
        self._joules = joules

    async def predict(
        self, body: bytes, quality: bytes | None, is_gone: Callable[[], bool] = never_gone
    ) -> Reply | None:
        """The reply to a body, errors included; None if the client has left."""
        family = self.engine.family
        try:
            request = parse_predict(body)
            answers = await self.engine.predict(
                request.texts, quality=parse_quality(quality), truncate=request.truncate, is_gone=is_gone
            )
        except ClientGone:
            return None
        except EngineError as error:
            return error_reply(error)
        headers = answer_headers(answers, self._joules.joules_per_cpu_second, self._joules.sources, family.version)
        return Reply(200, render_predictions(request, answers, family.manifest), headers)

    @staticmethod
    def refuse(error: EngineError) -> Reply:
        """The reply to a request that cannot be read."""
        return error_reply(error)


class App:
    """ASGI 3 application."""

    def __init__(self, replies: Replies, status: Callable[[], dict[str, Any]]) -> None:
        self._replies = replies
        self._rest = build_rest(replies.engine, status)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request (or a lifespan message)."""
        if scope["type"] != "http" or scope["path"] != "/predict":
            await self._rest(scope, receive, send)
        elif scope["method"] == "POST":
            await self._predict(scope, receive, send)
        else:
            await send_reply(send, WRONG_METHOD)

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(receive, self._replies.max_body_bytes)
        except ClientGone:
            return
        except EngineError as error:
            await send_reply(send, error_reply(error))
            return
        reply = await self._replies.predict(body, header(scope, b"x-quality"), watcher(receive))
        if reply is not None:
            await send_reply(send, reply)


def error_reply(error: EngineError) -> Reply:
    """An error in text-embeddings-inference's body shape."""
    status, error_type = http_error(error)
    headers: Headers = []
    if isinstance(error, Overloaded):
        headers.append((b"retry-after", b"%d" % max(1, ceil(error.retry_after_s))))
    if isinstance(error, NotReady):
        headers.append((b"retry-after", b"1"))
    return Reply(status, error_body(str(error), error_type), headers)


WRONG_METHOD = Reply(405, error_body("send POST /predict", "Validation"), [(b"allow", b"POST")])


def build_rest(engine: Engine, status: Callable[[], dict[str, Any]]) -> FastAPI:
    """The cold routes: `/info`, `/health`, `/docs`, `/openapi.json`."""
    rest = FastAPI(
        title="JouleServe",
        version=RELEASE,
        description="Text classification at the fewest joules that an accuracy floor allows.",
        # FastAPI's own pages load their scripts from a content network; ours needs no internet.
        docs_url=None,
        redoc_url=None,
    )

    @rest.get("/health", summary="Whether requests are accepted", responses={503: {"description": "draining"}})
    async def health() -> Response:
        if engine.ready:
            return Response(status_code=200)
        return Response(error_body("the server is stopping", "Unhealthy"), 503, media_type="application/json")

    @rest.get("/info", summary="The family that is served, its operating points and the dial")
    async def info() -> dict[str, Any]:
        return {**describe_family(engine), **status()}

    @rest.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(render_docs(rest.openapi()), media_type="text/html")

    describe_predict(rest)
    return rest


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
        "pair": manifest.pair,
        "points": [point.model_dump() for point in manifest.points],
        "dial": engine.dial.to_dict(),
        "cache": {"entries": len(engine.cache), "bytes": engine.cache.size_bytes},
        "queued": engine.queued,
    }
