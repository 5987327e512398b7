"""The page's routes. Both are open: they show what `/metrics` shows, and change nothing."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from server.console.data import ConsoleData
from server.console.page import page

NO_STORE = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def console_router(data: ConsoleData) -> APIRouter:
    """`/console`, and the data that it asks for every two seconds while somebody looks."""
    router = APIRouter(include_in_schema=False)

    @router.get("/console")
    async def console() -> Response:
        shown = page()
        return Response(shown.body, media_type="text/html; charset=utf-8", headers=shown.headers)

    @router.get("/console/data")
    async def figures() -> Response:
        return Response(await data.current(), media_type="application/json", headers=NO_STORE)

    return router
