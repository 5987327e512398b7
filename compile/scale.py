"""Real labels in training: brought to mean 0 and deviation 1, where any learning rate that suits logits suits them too.

The scale is folded into the head afterwards, so that a saved model and its graphs answer in the labels' own unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

_FLOAT32_ROUNDING_SHARE = 0.01
"""Answers around a mean that is a hundred times their deviation are rounded by float32 to a few 1e-5 of it."""


@dataclass(frozen=True)
class LabelScale:
    """Mean and standard deviation (above 0) of real labels; as it is by default, nothing is changed."""

    mean: float = 0.0
    deviation: float = 1.0

    @property
    def unit(self) -> float:
        """What differences between answers are measured by: 1 for logits, else the labels' deviation, or a hundredth
        of their mean where that is more."""
        return max(self.deviation, _FLOAT32_ROUNDING_SHARE * abs(self.mean))

    def standard(self, values: Tensor) -> Tensor:
        """Labels or answers, of any shape, in standard units."""
        return values if self == LabelScale() else (values - self.mean) / self.deviation

    def standardise(self, head: nn.Linear) -> None:
        """Make a head that answers in the labels' unit answer in standard units."""
        if self != LabelScale():
            head.weight.detach().div_(self.deviation)
            head.bias.detach().sub_(self.mean).div_(self.deviation)

    def restore(self, head: nn.Linear) -> None:
        """Make a head that answers in standard units answer in the labels' unit."""
        if self != LabelScale():
            head.weight.detach().mul_(self.deviation)
            head.bias.detach().mul_(self.deviation).add_(self.mean)
