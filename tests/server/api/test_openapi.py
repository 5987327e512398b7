"""The OpenAPI document and its page say what the server does, and no more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from server.api.errors import ERRORS, JOB_ERRORS, UnknownModel
from server.api.openapi import OPEN_PATHS
from server.engine.family import Family
from server.guard import Unauthenticated
from tests.support.apps import guard_of, post, serving


async def test_the_docs_page_shows_every_route_and_needs_no_internet(family: Family) -> None:
    async with serving(family) as (client, _, _):
        reply = await client.get("/docs")
    assert reply.headers["content-type"].startswith("text/html")
    assert all(route in reply.text for route in ("POST /predict", "GET /info", "GET /health", "X-Quality", "429"))
    assert not re.search(r"https?://|<script", reply.text)


async def openapi(family: Family) -> dict[str, Any]:
    async with serving(family) as (client, _, _):
        document: dict[str, Any] = (await client.get("/openapi.json")).json()
    return document


async def test_the_document_lists_exactly_the_statuses_of_the_table(family: Family) -> None:
    operation = (await openapi(family))["paths"]["/predict"]["post"]
    told = [
        row.http_status for error, row in ERRORS.items() if error not in (UnknownModel, Unauthenticated, *JOB_ERRORS)
    ]
    assert set(operation["responses"]) == {"200", *map(str, told)}
    assert "security" not in operation


async def test_where_keys_are_asked_for_the_document_says_so_and_can_be_read_without_one(
    family: Family, tmp_path: Path
) -> None:
    async with serving(family, guard_of(tmp_path)) as (client, _, _):
        document = (await client.get("/openapi.json")).json()
        docs, health = await client.get("/docs"), await client.get("/health")
    assert (docs.status_code, health.status_code) == (200, 200)
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("401" in operation["responses"]) == ("security" in operation) == (path not in OPEN_PATHS)


async def test_the_document_tells_what_inputs_this_family_takes(family: Family) -> None:
    schemas = (await openapi(family))["components"]["schemas"]
    text, one, batch = schemas["PredictBody"]["properties"]["inputs"]["anyOf"]
    assert (text["maxLength"], one["maxItems"], batch["maxItems"]) == (20_000, 1, 64)
    assert schemas["PredictBody"]["additionalProperties"] is False


async def test_the_document_lists_exactly_the_headers_that_are_sent(family: Family) -> None:
    document = await openapi(family)
    async with serving(family) as (client, _, _):
        reply = await post(client)
    described = document["paths"]["/predict"]["post"]["responses"]["200"]["headers"]
    sent = {name for name in reply.headers if name.startswith("x-")}
    # The two that are absent from a computed answer of full quality.
    absent = {"x-jouleserve-escalated", "x-jouleserve-saved-joules"}
    assert {name.lower() for name in described} == sent | absent
    assert not sent & absent


async def test_the_document_refers_to_nothing_that_it_does_not_hold(family: Family) -> None:
    document = await openapi(family)
    referred = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert referred == set(document["components"]["schemas"]) & referred
    assert referred == {"PredictBody", "Prediction", "ErrorBody"}
