"""The cold routes, by FastAPI; imported when the first of them is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from server.admin import Admin
from server.api.admin_routes import admin_router
from server.api.docs import render_docs
from server.api.errors import error_body
from server.api.http import INTERNAL_ERROR
from server.api.info import RELEASE, describe_family
from server.api.job_routes import job_schemas, jobs_router
from server.api.oip_routes import oip_router
from server.api.openapi import describe
from server.api.replies import Replies
from server.console.data import ConsoleData
from server.console.routes import console_router


def build_rest(
    replies: Replies,
    status: Callable[[], dict[str, Any]],
    console: ConsoleData | None = None,
    admin: Admin | None = None,
) -> FastAPI:
    """The cold routes: `/info`, `/health`, `/docs`, `/openapi.json`, and `/console` and `/admin` where there are."""
    engine = replies.engine
    rest = FastAPI(
        title="JouleServe",
        version=RELEASE,
        description="Text classification at the fewest joules that an accuracy floor allows.",
        # FastAPI's own pages load their scripts from a content network; ours needs no internet.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # it would send the client to wherever the Host header says
    )

    # `server.api.app` answers both before FastAPI is even loaded; they are here for the document.
    @rest.get("/health", summary="Whether requests are accepted", responses={503: {"description": "draining"}})
    @rest.get("/live", summary="Whether the process is alive")
    async def probe() -> Response:
        return Response(status_code=200)

    @rest.get("/info", summary="The family that is served, its operating points and the dial")
    async def info() -> dict[str, Any]:
        return {**describe_family(engine), **status()}

    @rest.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(render_docs(rest.openapi()), media_type="text/html")

    @rest.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        """No such route or method, in the shape of all errors."""
        body = error_body(str(error.detail), "NotFound" if error.status_code == 404 else "Validation")
        return Response(body, error.status_code, error.headers, "application/json")

    @rest.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        """Starlette raises the error again; `server.api.app` logs it."""
        return Response(INTERNAL_ERROR.body, INTERNAL_ERROR.status, media_type="application/json")

    rest.include_router(oip_router(replies, RELEASE))
    if console is not None:
        rest.include_router(console_router(console))
    if admin is not None:
        rest.include_router(admin_router(admin))
    schemas: dict[str, Any] = {}
    if replies.jobs is not None:
        rest.include_router(jobs_router(replies, replies.jobs))
        schemas = job_schemas()
    guard = replies.guard
    describe(rest, engine, schemas, needs_key=guard is not None and guard.needs_key)
    return rest
