"""What every group of settings has in common."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, field_validator

MIB = 1024 * 1024


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values do not change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_numbers(cls, value: Any, info: Any) -> Any:
        # pydantic reads true as 1: `port: yes` would bind port 1.
        annotation = cls.model_fields[info.field_name].annotation
        numbers = {int, float} & {annotation, *get_args(annotation)}
        if isinstance(value, bool) and numbers:
            raise ValueError("a yes/no value where a number belongs; give a number")
        return value
