"""What every group of settings has in common."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, field_validator

MIB = 1024 * 1024


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values do not change once made, and infinity is no number: no JSON
    says it, in which settings go to the replicas."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_numbers(cls, value: Any, info: Any) -> Any:
        # pydantic reads true as 1: `port: yes` would bind port 1.
        annotation = cls.model_fields[info.field_name].annotation
        numbers = {int, float} & {annotation, *get_args(annotation)}
        if isinstance(value, bool) and numbers:
            raise ValueError("a yes/no value where a number belongs; give a number")
        return value
