"""Turns validation errors into lines that an operator can act on: `section.field: what is wrong; remedy`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails


class SettingsError(Exception):
    """The settings cannot be used. `problems` holds one line each: `section.field: what is wrong; remedy`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted key and field of every setting below `model` that is not itself a section."""
    for name, field in model.model_fields.items():
        if (section := _section(field)) is not None:
            yield from leaves(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def problems_of(error: ValidationError, model: type[BaseModel], origins: Mapping[str, str]) -> list[str]:
    """One line for each problem in `error`, with the origin of the value where `origins` knows it."""
    return [_line(detail, model, origins) for detail in error.errors(include_url=False)]


def unknown_key(key: str, model: type[BaseModel], origin: str = "") -> str:
    """The line for a dotted `key` that `model` does not have, with the nearest key that it does have."""
    known = [name for name, _ in leaves(model)]
    *parents, leaf = key.split(".")
    prefix = "".join(f"{parent}." for parent in parents)
    beside = [name[len(prefix) :].split(".")[0] for name in known if name.startswith(prefix)]
    near = get_close_matches(leaf, beside, n=1, cutoff=0.6)
    elsewhere = get_close_matches(key, known, n=1, cutoff=0.6) or [n for n in known if n.endswith(f".{leaf}")]
    if near:
        remedy = f"did you mean '{prefix}{near[0]}'?"
    elif elsewhere:
        remedy = f"did you mean '{elsewhere[0]}'?"
    else:
        remedy = f"known here: {', '.join(dict.fromkeys(beside or known))}"
    return f"{key}: unknown key{origin}; {remedy}"


def _section(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _line(detail: ErrorDetails, model: type[BaseModel], origins: Mapping[str, str]) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    origin = f" ({origins[key]})" if key in origins else ""
    kind = detail["type"]
    if kind == "extra_forbidden":
        return unknown_key(key, model, origin)
    if kind == "value_error":
        # Our own validators phrase the problem and the remedy; those of a section name the field first.
        message = str(detail.get("ctx", {}).get("error", detail["msg"]))
        joint = ": " if _field(model, key) is not None and _is_leaf(model, key) else "."
        what, _, remedy = message.partition("; ")
        return f"{key}{joint}{what}{origin}; {remedy}"
    if kind == "literal_error":
        choices = detail.get("ctx", {}).get("expected", "")
        return f"{key}: {detail['input']!r} is not a choice{origin}; use {choices}"
    if kind == "model_type" or kind == "model_attributes_type":
        return f"{key}: {detail['input']!r} is not a group of settings{origin}; write its fields below it"
    message = detail["msg"].replace("Input should be", "must be")
    return f"{key}: {_given(model, key, detail)}{message}{origin}; {_remedy(model, key)}"


def _given(model: type[BaseModel], key: str, detail: ErrorDetails) -> str:
    field = _field(model, key)
    secret = field is not None and SecretStr in {field.annotation, *get_args(field.annotation)}
    return "" if secret else f"{detail['input']!r} is wrong: "


def _remedy(model: type[BaseModel], key: str) -> str:
    field = _field(model, key)
    if field is None:
        return "mend or remove it"
    default = field.get_default(call_default_factory=True)
    return f"mend it or leave it out for the default {'null' if default is None else default}"


def _is_leaf(model: type[BaseModel], key: str) -> bool:
    return key in {name for name, _ in leaves(model)}


def _field(model: type[BaseModel], key: str) -> FieldInfo | None:
    """The field at a dotted key, section or leaf; None if there is none."""
    *parents, leaf = key.split(".")
    for parent in parents:
        field = model.model_fields.get(parent)
        section = None if field is None else _section(field)
        if section is None:
            return None
        model = section
    return model.model_fields.get(leaf)
