"""`/admin`: settings of the running server over HTTP. `server.api.app` has checked the key before the body was read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.admin import MAX_ENTRIES, Admin
from server.api.errors import error_body
from server.config_problems import SettingsError
from server.shaping.tuning import VersionConflict


class Changes(BaseModel):
    """What to change."""

    model_config = ConfigDict(extra="forbid")

    changes: dict[str, Any] = Field(
        min_length=1,
        description="By dotted key, as in the settings file; all of it is taken or nothing.",
        examples=[{"shaping.policy": "threshold", "shaping.dirty_above_grams_per_kwh": 320}],
    )
    expected_version: int | None = Field(
        default=None, description="The version that was looked at; 409 if another one is in force."
    )


class Back(BaseModel):
    """What to go back to."""

    model_config = ConfigDict(extra="forbid")

    to: int | None = Field(default=None, ge=0, description="A version; null goes back to before the last change.")


_Body = TypeVar("_Body", bound=BaseModel)


_REFUSALS: Mapping[int | str, dict[str, Any]] = {
    401: {"description": "No key of an administrator"},
    403: {"description": "There are no administrators' keys, so nobody may"},
    408: {"description": "The request took too long to arrive"},
    409: {"description": "The settings changed meanwhile"},
    413: {"description": "The body is too large"},
    422: {"description": "A value is wrong; the field is named"},
    429: {"description": "Too many requests"},
    503: {"description": "The settings cannot be told or changed now"},
}


def admin_router(admin: Admin) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/admin", responses=dict(_REFUSALS))

    @router.get("/tuning", summary="Settings in force that can change, with their version")
    async def show() -> Response:
        return await _told(admin.show)

    @router.patch("/tuning", summary="Change settings", openapi_extra=_body(Changes))
    async def change(request: Request) -> Response:
        wanted = _parsed(Changes, await request.body())
        if isinstance(wanted, Response):
            return wanted
        who = _who(admin, request)
        return await _told(lambda: admin.change(wanted.changes, who, wanted.expected_version))

    @router.post("/tuning/undo", summary="Go back", openapi_extra=_body(Back))
    async def undo(request: Request) -> Response:
        wanted = _parsed(Back, await request.body() or b"{}")
        if isinstance(wanted, Response):
            return wanted
        who = _who(admin, request)
        return await _told(lambda: admin.undo(who, wanted.to))

    @router.get("/audit", summary="Who changed what when, newest first")
    async def entries(limit: Annotated[int, Query(ge=1, le=MAX_ENTRIES)] = 50) -> Response:
        return await _told(lambda: {"entries": admin.entries(limit)})

    return router


def _who(admin: Admin, request: Request) -> str:
    authorization = request.headers.get("authorization")
    return admin.admit(None if authorization is None else authorization.encode("latin-1"))


async def _told(act: Callable[[], dict[str, Any]]) -> Response:
    try:
        return _json(200, await asyncio.to_thread(act))
    except VersionConflict as error:
        return _error(409, str(error), "Conflict")
    except SettingsError as error:
        return _error(422, "; ".join(error.problems), "Validation", error.problems)
    except OSError as error:
        return _error(503, f"the settings cannot be written: {error.strerror}", "Unhealthy")


def _parsed(model: type[_Body], body: bytes) -> _Body | Response:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        return _error(422, f"{where}: {first['msg']}", "Validation")


def _body(model: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"content": {"application/json": {"schema": model.model_json_schema()}}}}


def _error(status: int, message: str, kind: str, problems: list[str] | None = None) -> Response:
    body = orjson.loads(error_body(message, kind))
    return _json(status, body if problems is None else {**body, "problems": problems})


def _json(status: int, content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
