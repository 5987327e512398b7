"""The OpenAPI entry of `/predict`, which raw ASGI answers (`server.api.app`) and FastAPI only documents."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field

from server.api.errors import HTTP_ERRORS
from server.shaping.policy import CLASSES


class PredictBody(BaseModel):
    """What to classify."""

    inputs: str | list[str] | list[list[str]] = Field(
        description='A text; or `["first", "second"]`, one pair; or a batch of `["text"]` or `["first", "second"]`.',
        examples=["I was charged twice", [["I was charged twice"], ["where is my parcel"]]],
    )
    raw_scores: bool = Field(default=False, description="Logits instead of probabilities.")
    truncate: bool = Field(default=False, description="Cut a text that is too long; otherwise 413.")
    truncation_direction: Literal["left", "right"] = Field(default="right", description="The end that is cut.")


class Prediction(BaseModel):
    """A label and its score."""

    score: float
    label: str


class ErrorBody(BaseModel):
    """Why there is no answer."""

    error: str
    error_type: str


_REPLY_HEADERS = {
    "X-JouleServe-Variant": "variant(s) that answered",
    "X-JouleServe-Point": "operating point(s) that answered",
    "X-JouleServe-Cache": "hit, miss, shared (an equal request was in flight) or mixed",
    "X-JouleServe-Reason": "why that point",
    "X-JouleServe-Version": "version of the family",
    "X-JouleServe-Joules": "dynamic joules of the answer, provisional; absent where nothing measures them",
    "X-JouleServe-Joules-Source": "rapl, nvml or estimated",
}


def describe_predict(app: FastAPI) -> None:
    """Add `/predict` to the app's OpenAPI document."""
    original = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = original()
            schema.setdefault("paths", {})["/predict"] = {"post": _operation()}
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for model in (PredictBody, Prediction, ErrorBody):
                schemas[model.__name__] = model.model_json_schema()
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _operation() -> dict[str, Any]:
    single = {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}
    statuses: dict[int, list[str]] = {}
    for error, (status, _) in HTTP_ERRORS.items():
        statuses.setdefault(status, []).append((error.__doc__ or "").split(";")[0].strip().rstrip("."))
    responses: dict[str, Any] = {
        "200": {
            "description": "Every label with its score, best first; a list of such lists for a batch.",
            "headers": {
                name: {"description": text, "schema": {"type": "string"}} for name, text in _REPLY_HEADERS.items()
            },
            "content": {"application/json": {"schema": {"oneOf": [single, {"type": "array", "items": single}]}}},
        }
    }
    for status, causes in sorted(statuses.items()):
        responses[str(status)] = {
            "description": "; ".join(causes),
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
        }
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
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/PredictBody"}}},
        },
        "responses": responses,
    }
