"""What every part of a recipe has in common: unknown keys are refused, values never change."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)
