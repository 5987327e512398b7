"""The OpenAPI document: `/predict`, which raw ASGI answers and FastAPI only documents, and what `server.api.app` does
before any route: keys and bounds."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from server.api.errors import ERRORS, JOB_ERRORS, BodyTooLarge, SlowRequest, UnknownModel
from server.api.paths import OPEN_PATHS
from server.engine.engine import Engine
from server.engine.errors import EngineError
from server.guard import Unauthenticated
from server.shaping.policy import CLASSES


class PredictBody(BaseModel):
    """What to classify."""

    model_config = ConfigDict(extra="forbid")

    inputs: str | list[str] | list[list[str]] = Field(
        description='A text; or `["first", "second"]`, one pair; or a batch of `["text"]` or `["first", "second"]`.',
        examples=["I was charged twice", [["I was charged twice"], ["where is my parcel"]]],
    )
    raw_scores: bool | None = Field(
        default=False, description="Logits instead of probabilities; a regression answers with its number either way."
    )
    truncate: bool | None = Field(default=False, description="Cut a text that is too long; otherwise 413.")
    truncation_direction: Literal["left", "right", "Left", "Right"] = Field(
        default="right", description="The end that is cut."
    )


class Prediction(BaseModel):
    """A label and its score; of a regression the one number that it answers, in the unit of its training labels."""

    score: float
    label: str


class ErrorBody(BaseModel):
    """Why there is no answer."""

    error: str
    error_type: str


_ERROR_CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
_REPLY_HEADERS = {
    "X-JouleServe-Variant": "variant(s) that answered",
    "X-JouleServe-Point": "operating point(s) that answered",
    "X-JouleServe-Cache": "hit, miss, shared (an equal request was in flight) or mixed",
    "X-JouleServe-Reason": "why that point",
    "X-JouleServe-Version": "version of the family",
    "X-JouleServe-Joules": "dynamic joules of the answer, provisional; absent where nothing measures them",
    "X-JouleServe-Joules-Loaded": "the same with its share of idling and overhead, times PUE; absent until it is known",
    "X-JouleServe-Joules-Source": "rapl, nvml or estimated",
    "X-JouleServe-Saved-Joules": "dynamic joules that computing it at full quality would have taken beyond these, an"
    " estimate; below 0 where this took more; absent where full quality computed it or nothing measures joules",
    "X-JouleServe-Escalated": "texts that a cascade's first variant was unsure of; absent where there are none",
}


def describe(app: FastAPI, engine: Engine, more: dict[str, Any], *, needs_key: bool) -> None:
    """Complete the app's OpenAPI document; `more` are schemas of other routes."""
    original = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = original()
            schema.setdefault("paths", {})["/predict"] = {"post": _operation()}
            components = schema.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for model in (PredictBody, Prediction, ErrorBody):
                schemas[model.__name__] = model.model_json_schema()
            schemas.update(more)
            schemas["PredictBody"]["properties"]["inputs"].update(_inputs(engine))
            for path, operations in schema["paths"].items():
                for method, operation in operations.items():
                    _complete(path, method, operation, needs_key)
            # FastAPI lists its own validation for path parameters, all of which are any text here.
            for own in ("HTTPValidationError", "ValidationError"):
                schemas.pop(own, None)
            if needs_key:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _inputs(engine: Engine) -> dict[str, Any]:
    """What `inputs` may be for this family and within these limits."""
    limits, pair = engine.limits, engine.family.manifest.pair
    text = {"type": "string", "minLength": 1, "maxLength": limits.max_text_chars}
    parts = 2 if pair else 1
    one = {"type": "array", "items": text, "minItems": parts, "maxItems": parts}
    batch = {"type": "array", "items": one, "minItems": 1, "maxItems": limits.max_texts_per_request}
    if not pair:
        return {"anyOf": [text, one, batch]}
    examples = [["The parcel is here", "It has arrived"], [["The parcel is here", "It has arrived"]]]
    return {"anyOf": [one, batch], "examples": examples, "description": 'A pair `["first", "second"]`; or pairs.'}


def _complete(path: str, method: str, operation: dict[str, Any], needs_key: bool) -> None:
    """Tell of the answers that any operation may give before it is asked, and of the shape of all errors."""
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    for status, response in responses.items():
        if int(status) >= 400 and "content" not in response:
            response["content"] = _ERROR_CONTENT
    before: list[type[EngineError]] = [SlowRequest, BodyTooLarge] if method == "post" else []
    if needs_key and path not in OPEN_PATHS:
        before.append(Unauthenticated)
        operation["security"] = [{"key": []}]
    for error in before:
        responses.setdefault(str(ERRORS[error].http_status), _response([error]))


def _response(errors: list[type[EngineError]]) -> dict[str, Any]:
    causes = dict.fromkeys((error.__doc__ or "").split(";")[0].strip().rstrip(".") for error in errors)
    response: dict[str, Any] = {
        "description": "; ".join(causes),
        "content": _ERROR_CONTENT,
    }
    status = ERRORS[errors[0]].http_status
    if status == 401:
        response["headers"] = {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}}
    if status in (429, 503):
        text = "seconds after which to ask again"
        response["headers"] = {"Retry-After": {"description": text, "schema": {"type": "integer", "minimum": 1}}}
    return response


def error_responses(*but: type[EngineError]) -> dict[str, Any]:
    """The answers to requests that fail, by status, but for these errors (and missing keys, see `_complete`)."""
    statuses: dict[int, list[type[EngineError]]] = {}
    for error, row in ERRORS.items():
        if error not in (Unauthenticated, *but):
            statuses.setdefault(row.http_status, []).append(error)
    return {str(status): _response(errors) for status, errors in sorted(statuses.items())}


def _operation() -> dict[str, Any]:
    single = {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}
    responses: dict[str, Any] = {
        "200": {
            "description": "Every label with its score, best first; a list of such lists for a batch.",
            "headers": {
                name: {"description": text, "schema": {"type": "string"}} for name, text in _REPLY_HEADERS.items()
            },
            "content": {"application/json": {"schema": {"oneOf": [single, {"type": "array", "items": single}]}}},
        }
    }
    responses.update(error_responses(UnknownModel, *JOB_ERRORS))  # /predict names neither
    return {
        "summary": "Classify texts",
        "operationId": "predict",
        "parameters": [
            {
                "name": "X-Quality",
                "in": "header",
                "required": False,
                "description": "strict is never degraded, eco always takes the cheapest point",
                "schema": {"type": "string", "enum": list(CLASSES), "default": "standard"},
            },
            {
                "name": "X-Session",
                "in": "header",
                "required": False,
                "description": "names a conversation: its requests stay on one side of a divided dial; by default, a"
                " request's first text does",
                "schema": {"type": "string"},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/PredictBody"}}},
        },
        "responses": responses,
    }
