"""The routes of the Open Inference Protocol v2 over HTTP. Errors have the body of `/predict`, whose `error` is this
protocol's, too."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from server.api.asking import Client, ask
from server.api.errors import JOB_ERRORS, MalformedRequest
from server.api.http import Headers, head_of, header, watcher
from server.api.oip import check_model, make_outputs
from server.api.oip_json import model_metadata, parse_infer, render_infer, server_metadata
from server.api.openapi import error_responses
from server.api.replies import Replies, error_reply
from server.engine.errors import ClientGone, EngineError, NotReady

HEADER_LENGTH = "Inference-Header-Content-Length"
Name = Annotated[str, Path(description="name of the family that is served")]
Version = Annotated[str, Path(description="version that is served")]
_ERRORS = error_responses(*JOB_ERRORS)
_MODEL_ERRORS: dict[int | str, Any] = {"404": _ERRORS["404"]}
_READY_ERRORS: dict[int | str, Any] = {"503": _ERRORS["503"]}
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": {"type": "string", "description": "Echoed in the reply."},
                    "inputs": {
                        "type": "array",
                        "items": {"type": "object"},
                        "description": "One tensor `text`, BYTES of shape [n] or [n, 1], or [n, 2] for pairs.",
                    },
                    "outputs": {
                        "type": "array",
                        "items": {"type": "object"},
                        "description": "Which of `labels` and `scores`; their parameters may hold classification and "
                        "binary_data.",
                    },
                    "parameters": {
                        "type": "object",
                        "description": "quality, truncate, truncation_direction, raw_scores, binary_data_output.",
                    },
                },
                "example": {
                    "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["I was charged twice"]}]
                },
            }
        }
    },
}


def oip_router(replies: Replies, release: str) -> APIRouter:
    """`/v2` and what is below it."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])
    _add_metadata(router, replies, release)
    _add_health(router, replies)
    _add_inference(router, replies)
    return router


def _refused(replies: Replies, error: EngineError) -> Response:
    if isinstance(error, ClientGone):
        return Response(status_code=499)  # nobody reads it
    replies.note(error)
    return _told(error)


def _told(error: EngineError) -> Response:
    """The reply to a request without texts: it is not counted among those that were refused."""
    reply = error_reply(error)
    response = Response(reply.body, reply.status, media_type="application/json")
    response.raw_headers.extend(reply.headers)
    return response


def _add_metadata(router: APIRouter, replies: Replies, release: str) -> None:
    engine = replies.engine

    @router.get("", summary="Name, release and extensions of the server")
    async def server() -> dict[str, Any]:
        return server_metadata(release)

    @router.get("/models/{name}/versions/{version}", summary="Tensors of the model", responses=_MODEL_ERRORS)
    async def versioned_model(name: Name, version: Version) -> Any:
        try:
            check_model(engine.family, name, version)
        except EngineError as error:
            return _told(error)
        return model_metadata(engine.family)

    @router.get("/models/{name}", summary="Tensors of the model", responses=_MODEL_ERRORS)
    async def model(name: Name) -> Any:
        return await versioned_model(name, "")


def _add_health(router: APIRouter, replies: Replies) -> None:
    engine = replies.engine

    @router.get("/health/live", response_class=Response, summary="Whether the server runs")
    async def live() -> Response:
        return Response(status_code=200)

    @router.get(
        "/health/ready",
        response_class=Response,
        summary="Whether requests are accepted",
        responses=_READY_ERRORS,
    )
    async def ready() -> Response:
        if engine.ready:
            return Response(status_code=200)
        return _told(NotReady("the server is stopping, or a worker of it has died"))

    document: dict[str, Any] = {
        "summary": "Whether the model answers",
        "response_class": Response,
        "responses": {**_MODEL_ERRORS, **_READY_ERRORS},
    }

    @router.get("/models/{name}/versions/{version}/ready", **document)
    async def versioned_ready(name: Name, version: Version) -> Response:
        try:
            check_model(engine.family, name, version)
        except EngineError as error:
            return _told(error)
        return await ready()

    @router.get("/models/{name}/ready", **document)
    async def model_ready(name: Name) -> Response:
        return await versioned_ready(name, "")


def _add_inference(router: APIRouter, replies: Replies) -> None:
    document: dict[str, Any] = {
        "summary": "Classify texts",
        "responses": _ERRORS,
        "openapi_extra": {"requestBody": _BODY},
    }

    @router.post("/models/{name}/versions/{version}/infer", **document)
    async def versioned_infer(name: Name, version: Version, request: Request) -> Response:
        told: Headers = []
        try:
            response = await _infer(replies, name, version, request, told)
        except EngineError as error:
            response = _refused(replies, error)
        response.raw_headers.extend(told)
        return response

    @router.post("/models/{name}/infer", **document)
    async def infer(name: Name, request: Request) -> Response:
        return await versioned_infer(name, "", request)


async def _infer(replies: Replies, name: str, version: str, request: Request, told: Headers) -> Response:
    """The answer; `told` gets headers that belong to a refusal, too."""
    check_model(replies.engine.family, name, version)
    scope = request.scope
    if header(scope, b"content-encoding") not in (None, b"identity"):
        raise MalformedRequest("content-encoding: compressed bodies are not read here; send it as it is")
    body = await request.body()  # read, and its size bounded, before any route
    length = header(scope, HEADER_LENGTH.lower().encode())
    asked = parse_infer(body, length, replies.engine.limits.max_texts_per_request)
    head = head_of(scope)
    client = Client(
        head.authorization,
        head.traceparent,
        is_gone=watcher(request.receive),
        where={"url.path": scope["path"]},
        tell_trace=lambda value: told.append((b"traceresponse", value)),
        session=head.session,
    )
    answered = await ask(replies, asked.texts, asked.quality, asked.truncate, client)
    family = answered.family
    outputs = make_outputs(asked, answered.answers, family.manifest)
    content, json_length = render_infer(asked, outputs, answered.told, family)
    if json_length == len(content):
        return Response(content, media_type="application/json")
    return Response(content, headers={HEADER_LENGTH: str(json_length)}, media_type="application/octet-stream")
