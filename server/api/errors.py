"""One table: what went wrong -> HTTP status and the `error_type` of text-embeddings-inference's error body."""

from __future__ import annotations

import orjson

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


class MalformedRequest(EngineError):
    """The body is no JSON, or not of the documented shape."""


class BodyTooLarge(EngineError):
    """The body exceeds its limit before it is even parsed."""


HTTP_ERRORS: dict[type[EngineError], tuple[int, str]] = {
    EmptyInput: (400, "Empty"),
    BodyTooLarge: (413, "Validation"),
    InputTooLarge: (413, "Validation"),
    MalformedRequest: (422, "Validation"),
    InvalidInput: (422, "Validation"),
    BackendFailure: (424, "Backend"),
    Overloaded: (429, "Overloaded"),
    NotReady: (503, "Unhealthy"),
    DeadlineExceeded: (504, "Timeout"),
}


def http_error(error: EngineError) -> tuple[int, str]:
    """HTTP status and `error_type` of an error; a kind that is not in the table is a backend failure."""
    return HTTP_ERRORS.get(type(error), (424, "Backend"))


def error_body(message: str, error_type: str) -> bytes:
    """JSON of an error."""
    return orjson.dumps({"error": message, "error_type": error_type})
