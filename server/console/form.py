"""The settings that the page's form offers: every one that can change while the server runs, by its schema."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import TypeAdapter

from server.config_problems import leaves
from server.shaping.tunables import Tunables

_LIMITS = {"minimum": "min", "exclusiveMinimum": "min", "maximum": "max"}


def form_fields() -> list[dict[str, Any]]:
    """One map a setting: `key` (dotted), `kind` (choice, integer, number or text), `nullable`, `about`, and where there
    are any `choices`, `min`, `max` (both as the schema says; the server has the last word)."""
    return [_form_field(key, info) for key, info in leaves(Tunables) if key != "version"]


def _form_field(key: str, info: Any) -> dict[str, Any]:
    schema = TypeAdapter(Annotated[info.annotation, info]).json_schema()
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    (kind,) = kinds
    choices = kind.get("enum", ["true", "false"] if kind["type"] == "boolean" else None)
    field: dict[str, Any] = {
        "key": key,
        "kind": "choice" if choices else {"integer": "integer", "number": "number"}.get(kind["type"], "text"),
        "nullable": "anyOf" in schema,
        "about": " ".join((info.description or "").split()),
    }
    if choices:
        field["choices"] = choices
    field.update({ours: kind[theirs] for theirs, ours in _LIMITS.items() if theirs in kind})
    return field
