"""What every part of a recipe has in common: unknown keys are refused, values never change."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["float32", "bfloat16"]
"""What a model is trained in: `bfloat16` runs matrix products and their gradients in half the bits (weights, norms and
losses stay in float32), 1.4 to 1.8 times as fast on CPUs with AVX512-BF16 or AMX and slower on others."""


class Strict(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)
