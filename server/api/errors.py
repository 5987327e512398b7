"""One table: what went wrong -> what each protocol says of it."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import orjson

from server.admin import AdminClosed
from server.engine.errors import (
    BackendFailure,
    DeadlineExceeded,
    EmptyInput,
    EngineError,
    InputTooLarge,
    InvalidInput,
    NotReady,
    Overloaded,
)
from server.guard import RateLimited, Unauthenticated
from server.jobs.errors import JobConflict, UnknownJob


class MalformedRequest(EngineError):
    """The body is no JSON, or not of the documented shape."""


class BodyTooLarge(EngineError):
    """The body exceeds its limit before it is even parsed."""


class SlowRequest(EngineError):
    """The request did not arrive completely within its time limit."""


class UnknownModel(EngineError):
    """The request names a model or a version that is not served."""


class ErrorRow(NamedTuple):
    """How one kind of error is told: HTTP status, `error_type` of text-embeddings-inference's error body, and the name
    of a `grpc.StatusCode`."""

    http_status: int
    error_type: str
    grpc_code: str


JOB_ERRORS = (UnknownJob, JobConflict)
"""Errors that only `/jobs` knows."""
ERRORS: dict[type[EngineError], ErrorRow] = {
    EmptyInput: ErrorRow(400, "Empty", "INVALID_ARGUMENT"),
    Unauthenticated: ErrorRow(401, "Unauthenticated", "UNAUTHENTICATED"),
    AdminClosed: ErrorRow(403, "Forbidden", "PERMISSION_DENIED"),
    UnknownModel: ErrorRow(404, "NotFound", "NOT_FOUND"),
    UnknownJob: ErrorRow(404, "NotFound", "NOT_FOUND"),
    SlowRequest: ErrorRow(408, "Timeout", "DEADLINE_EXCEEDED"),
    JobConflict: ErrorRow(409, "Conflict", "FAILED_PRECONDITION"),
    BodyTooLarge: ErrorRow(413, "Validation", "RESOURCE_EXHAUSTED"),  # as gRPC says of a message over its limit
    InputTooLarge: ErrorRow(413, "Validation", "INVALID_ARGUMENT"),
    MalformedRequest: ErrorRow(422, "Validation", "INVALID_ARGUMENT"),
    InvalidInput: ErrorRow(422, "Validation", "INVALID_ARGUMENT"),
    BackendFailure: ErrorRow(424, "Backend", "INTERNAL"),
    RateLimited: ErrorRow(429, "RateLimited", "RESOURCE_EXHAUSTED"),
    Overloaded: ErrorRow(429, "Overloaded", "RESOURCE_EXHAUSTED"),
    NotReady: ErrorRow(503, "Unhealthy", "UNAVAILABLE"),
    DeadlineExceeded: ErrorRow(504, "Timeout", "DEADLINE_EXCEEDED"),
}


def error_row(error: EngineError) -> ErrorRow:
    """The row of an error; a kind that is not in the table is told as a failure of the backend."""
    return ERRORS.get(type(error), ERRORS[BackendFailure])


def retry_after_s(error: EngineError) -> int | None:
    """Whole seconds after which to ask again; None where asking again changes nothing."""
    if isinstance(error, Overloaded | RateLimited):
        return max(1, ceil(error.retry_after_s))
    return 1 if isinstance(error, NotReady) else None


def error_body(message: str, error_type: str) -> bytes:
    """JSON of an error."""
    return orjson.dumps({"error": message, "error_type": error_type})
