"""`/docs`: the OpenAPI document as one HTML page that needs neither scripts nor the internet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:.5em 0}td,th{border:1px solid #bbb;padding:.2em .6em;text-align:left}"
    "pre{background:#f3f3f3;padding:.7em;overflow-x:auto}h2{margin-top:2em}"
)


def render_docs(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document whose schemas are local and flat, such as `describe_predict` makes."""
    info = document["info"]
    parts = [f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"]
    parts.append('<p>The same for programs: <a href="openapi.json">openapi.json</a></p>')
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(_operation(f"{method.upper()} {path}", operation, schemas))
    title = escape(info["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style>{''.join(parts)}</html>"
    )


def _operation(heading: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    parts = [f"<h2>{escape(heading)}</h2><p>{escape(operation['summary'])}</p>"]
    if "security" in operation:
        parts.append("<p>Asks for an API key: <code>Authorization: Bearer KEY</code></p>")
    for place, title in (("path", "In the path"), ("header", "Request headers")):
        named = [one for one in operation.get("parameters", ()) if one["in"] == place]
        rows = [(one["name"], _values(one["schema"]), one.get("description", "")) for one in named]
        parts.append(_table(title, ("name", "values", "meaning"), rows))
    if "requestBody" in operation:
        parts += _body(operation["requestBody"]["content"]["application/json"]["schema"], schemas)
    answers = [(status, one["description"]) for status, one in operation["responses"].items()]
    parts.append(_table("Answers", ("status", "meaning"), answers))
    headers = operation["responses"].get("200", {}).get("headers", {})
    told = [(name, one["description"]) for name, one in headers.items()]
    parts.append(_table("Headers of an answer", ("header", "meaning"), told))
    return "".join(parts)


def _body(schema: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    """The fields of a body, and examples of it: of the whole, or of its `inputs`."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rsplit("/", 1)[-1]]
    properties = schema["properties"]
    fields = [(name, _values(one), one.get("description", "")) for name, one in properties.items()]
    examples = [{"inputs": one} for one in properties["inputs"].get("examples", ())]
    if "example" in schema:
        examples.append(schema["example"])
    table = _table("Request body (JSON)", ("field", "values", "meaning"), fields)
    return [table, *(f"<pre>{escape(json.dumps(one))}</pre>" for one in examples)]


def _values(schema: dict[str, Any]) -> str:
    kinds = schema.get("enum") or [_kind(one) for one in schema.get("anyOf", [schema])]
    default = f" (default {json.dumps(schema['default'])})" if "default" in schema else ""
    return " | ".join(kinds) + default


def _kind(schema: dict[str, Any]) -> str:
    return f"list of {_kind(schema['items'])}" if schema["type"] == "array" else str(schema["type"])


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<h3>{title}</h3><table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{lines}</table>"
