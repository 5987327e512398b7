"""What a recipe may say about confidence and cascades."""

from __future__ import annotations

from pydantic import Field

from compile.specs.base import Strict


class CalibrateSpec(Strict):
    """Whether pairs of variants are published as cascades: the cheap one first, the dear one where it is unsure."""

    enabled: bool = True
    max_points: int = Field(default=6, ge=1, le=32)
    """Most operating points, full quality and single variants included; single variants on the front always stay."""
