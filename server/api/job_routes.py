"""`/jobs`: requests that can wait. Errors have the body of `/predict`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from server.api.errors import MalformedRequest, UnknownModel
from server.api.http import header
from server.api.job_requests import FILES, Submission, check_texts, digest_of, parse_key, parse_submission
from server.api.openapi import PredictBody, error_responses
from server.api.replies import JobsIntake, Replies, error_reply
from server.engine.engine import Engine
from server.engine.errors import EngineError
from server.jobs.job import STATES

MOST_LISTED, MOST_RESULTS = 1000, 10_000
LISTED, RESULTS = 100, 1000
JobId = Annotated[str, Path(description="id of a job of yours")]


class JobBody(PredictBody):
    """What to classify, and by when: `deadline` or `within_s`."""

    inputs: str | list[str] | list[list[str]] = Field(description="As in /predict; as many texts as a job may have.")
    deadline: str | None = Field(default=None, description="ISO 8601 time; without a zone UTC.")
    within_s: float | None = Field(default=None, gt=0, description="Seconds from now.")


class JobReply(BaseModel):
    """A job. Times are of the grid's clock, which is the real one unless a recording is played."""

    id: str
    state: Literal["waiting", "running", "done", "cancelled"]
    now: str = Field(description="That clock's time.")
    submitted: str
    deadline: str
    planned: str | None = Field(description="When it is to begin or go on, as planned now.")
    started: str | None
    finished: str | None
    late: bool = Field(description="Done, or still open, after its deadline.")
    texts: int
    texts_done: int
    texts_failed: int
    texts_metered: int = Field(description="Texts whose joules and grams are in the figures below.")
    joules: float | None
    grams: float | None = Field(description="gCO2e in the hours in which it ran.")
    grams_at_once: float | None = Field(description="gCO2e of the same joules in the hour of the submission.")


class JobList(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobReply]
    next: str | None = Field(description="Give it as `after` for those that follow; null at the end.")


class JobResult(BaseModel):
    """What came of a text: predictions and the version that gave them, or an error."""

    predictions: list[dict[str, Any]] | None = None
    version: str | None = None
    error: str | None = None
    error_type: str | None = None


class JobResults(BaseModel):
    """Results in the order of the texts."""

    results: list[JobResult]
    next: int | None = Field(description="Give it as `start` for those that follow; null at the end.")


_ERRORS = error_responses(UnknownModel)


def _some(*statuses: int) -> dict[int | str, Any]:
    return {str(status): _ERRORS[str(status)] for status in statuses}


def _parameter(name: str, place: str, text: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": place, "required": False, "description": text, "schema": schema}


_JOB_JSON = {"application/json": {"schema": {"$ref": "#/components/schemas/JobReply"}}}
_FILE_FIELDS: dict[str, dict[str, Any]] = {
    "deadline": {"type": "string"},
    "within_s": {"type": "number"},
    "truncate": {"type": "boolean"},
    "truncation_direction": {"type": "string", "enum": ["left", "right"]},
    "raw_scores": {"type": "boolean"},
}
_SUBMIT: dict[str, Any] = {
    "parameters": [
        _parameter("Idempotency-Key", "header", "sent again, the same job is told", type="string", maxLength=255),
        *(_parameter(name, "query", "for files", **schema) for name, schema in _FILE_FIELDS.items()),
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/JobBody"}},
            **{kind: {"schema": {"type": "string"}} for kind in FILES},
        },
    },
}
_LIST: dict[str, Any] = {
    "parameters": [
        _parameter("state", "query", "only those", type="string", enum=list(STATES)),
        _parameter("after", "query", "only those behind that job", type="string"),
        _parameter("limit", "query", "at most so many", type="integer", minimum=1, maximum=MOST_LISTED, default=LISTED),
    ]
}
_PAGE: dict[str, Any] = {
    "parameters": [
        _parameter("start", "query", "number of the first text", type="integer", minimum=0, default=0),
        _parameter(
            "limit", "query", "at most so many", type="integer", minimum=1, maximum=MOST_RESULTS, default=RESULTS
        ),
    ]
}


def jobs_router(replies: Replies, intake: JobsIntake) -> APIRouter:
    """`/jobs` and what is below it. Each answer of an error is documented."""
    router = APIRouter(prefix="/jobs", tags=["Jobs"])
    _add_submission(router, replies, intake)
    _add_queries(router, replies, intake)
    return router


def job_schemas() -> dict[str, Any]:
    """Schemas of the bodies, by name."""
    models = (JobBody, JobReply, JobList, JobResult, JobResults)
    template = "#/components/schemas/{model}"
    schemas = {model.__name__: model.model_json_schema(ref_template=template) for model in models}
    for schema in schemas.values():
        schema.pop("$defs", None)
    return schemas


def _add_submission(router: APIRouter, replies: Replies, intake: JobsIntake) -> None:
    responses = {
        "200": {"description": "The job that this idempotency key made before", "content": _JOB_JSON},
        "201": {
            "description": "The new job",
            "content": _JOB_JSON,
            "headers": {"Location": {"description": "where to ask for it", "schema": {"type": "string"}}},
        },
        **_some(400, 408, 413, 422, 429, 503),
    }

    reading = asyncio.Lock()  # one at a time: each wants the interpreter, and some times its body's size of memory

    @router.post(
        "", status_code=201, summary="Classify texts by a deadline", responses=responses, openapi_extra=_SUBMIT
    )
    async def submit(request: Request) -> Response:
        try:
            return await _submit(replies, intake, request, reading)
        except EngineError as error:
            return _refused(error)


async def _submit(replies: Replies, intake: JobsIntake, request: Request, reading: asyncio.Lock) -> Response:
    scope = request.scope
    owner = _owner(replies, request)
    if header(scope, b"content-encoding") not in (None, b"identity"):
        raise MalformedRequest("content-encoding: compressed bodies are not read here; send it as it is")
    body = await request.body()  # read, and its size bounded, before any route
    kind = (header(scope, b"content-type") or b"application/json").decode("latin-1")
    query = dict(request.query_params)
    async with reading:
        submission, digest = await asyncio.to_thread(_read, body, kind, query, intake.max_texts, replies.engine)
    key = parse_key(header(scope, b"idempotency-key"))
    if replies.guard is not None:
        # One text's worth of the client's rate: the others are computed when nobody else wants to be.
        replies.guard.admit(header(scope, b"authorization"), 1)
    wanted = submission.wanted(owner, await intake.port.now_s(), key, digest)
    job, new = await intake.port.submit(wanted)
    return _json(job, 201 if new else 200, {"Location": f"/jobs/{job['id']}"} if new else {})


def _read(body: bytes, kind: str, query: dict[str, str], max_texts: int, engine: Engine) -> tuple[Submission, bytes]:
    """A submission whose texts the family takes, and its digest. In a thread of its own: that of a large one takes a
    tenth of a second, for which the event loop would answer nobody."""
    submission = parse_submission(body, kind, query, max_texts)
    check_texts(submission.texts, engine.family, engine.limits.max_text_chars)
    return submission, digest_of(body, kind, query)


def _add_queries(router: APIRouter, replies: Replies, intake: JobsIntake) -> None:
    @router.get(
        "", summary="Your jobs, newest first", response_model=JobList, responses=_some(422, 503), openapi_extra=_LIST
    )
    async def listed(request: Request) -> Response:
        try:
            query = _query(request, {"state", "after", "limit"})
            state = query.get("state")
            if state is not None and state not in STATES:
                raise MalformedRequest(f"state: give one of {', '.join(STATES)}")
            limit = _number(query, "limit", LISTED, 1, MOST_LISTED)
            jobs = await intake.port.listed(_owner(replies, request), state, query.get("after"), limit)
        except EngineError as error:
            return _refused(error)
        return _json({"jobs": jobs, "next": jobs[-1]["id"] if len(jobs) == limit else None})

    @router.get("/{job_id}", summary="A job", response_model=JobReply, responses=_some(404, 503))
    async def show(job_id: JobId, request: Request) -> Response:
        try:
            return _json(await intake.port.show(_owner(replies, request), job_id))
        except EngineError as error:
            return _refused(error)

    @router.delete(
        "/{job_id}", summary="Cancel a job", response_model=JobReply, responses=_some(404, 408, 409, 413, 503)
    )
    async def cancel(job_id: JobId, request: Request) -> Response:
        try:
            return _json(await intake.port.cancel(_owner(replies, request), job_id))
        except EngineError as error:
            return _refused(error)

    @router.get(
        "/{job_id}/results",
        summary="The results of a job that is done",
        response_model=JobResults,
        responses=_some(404, 409, 422, 503),
        openapi_extra=_PAGE,
    )
    async def results(job_id: JobId, request: Request) -> Response:
        try:
            query = _query(request, {"start", "limit"})
            start = _number(query, "start", 0, 0, 1 << 40)
            limit = _number(query, "limit", RESULTS, 1, MOST_RESULTS)
            owner = _owner(replies, request)
            rows = await intake.port.results(owner, job_id, start, limit)
            texts = (await intake.port.show(owner, job_id))["texts"]
        except EngineError as error:
            return _refused(error)
        more = start + len(rows) if rows and start + len(rows) < texts else None
        return _json({"results": [orjson.Fragment(row) for row in rows], "next": more})


def _owner(replies: Replies, request: Request) -> str:
    guard = replies.guard
    return "" if guard is None else guard.admit(header(request.scope, b"authorization"), 0)


def _query(request: Request, known: set[str]) -> dict[str, str]:
    query = dict(request.query_params)
    if unknown := query.keys() - known:
        raise MalformedRequest(f"{min(unknown)[:40]}: unknown parameter; known are {', '.join(sorted(known))}")
    return query


def _number(query: dict[str, str], name: str, usual: int, least: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return usual
    if not (text.isascii() and text.isdigit() and len(text) < 16) or not least <= int(text) <= most:
        raise MalformedRequest(f"{name}: give a whole number from {least} to {most}")
    return int(text)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, "application/json")


def _refused(error: EngineError) -> Response:
    # Not counted among the texts that were refused: a job's texts are counted when they are computed.
    reply = error_reply(error)
    response = Response(reply.body, reply.status, media_type="application/json")
    response.raw_headers.extend(reply.headers)
    return response
