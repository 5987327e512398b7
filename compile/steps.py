"""The passes that a variant's `passes` may name: their settings, what they are handed, and what each may follow.

The order is data. `refusal` says why a pass cannot stand where a recipe puts it; the line (`compile.line`) knows which
class does the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pydantic import SerializeAsAny, model_serializer, model_validator

from compile.specs.base import Strict
from compile.specs.distil import DistilSpec
from compile.specs.finetune import FinetuneSpec
from compile.specs.layers import DropLayersSpec
from compile.specs.prune import LowRankSpec, PruneUnitsSpec, ReconstructSpec
from compile.specs.quantize import QatSpec, QuantizeSpec

Handed = Literal["data", "model", "teacher", "lessons", "uncut", "widths"]
"""What a pass can be handed: the rows, the model as it stands, the teacher, the teacher's answers, the model as it was
before its units were last cut, and the table of what layers cost by width."""


@dataclass(frozen=True)
class Kind:
    """A pass as the order knows it."""

    spec: type[Strict]
    roles: Mapping[str, Handed]
    """The pass's input roles -> what the line hands."""
    gives: Literal["model", "graph"] = "model"
    cuts: bool = False
    """Whether it makes the model smaller."""
    never_after: Mapping[str, str] = field(default_factory=dict)
    """Passes that must not come anywhere before -> the reason."""
    directly_after: tuple[str, ...] = ()
    """The pass just before must be one of these; any, where empty."""
    after_a_cut: bool = False
    """Whether something must have made the model smaller before."""
    why: str = ""
    """The reason for `directly_after` or `after_a_cut`."""


_UNITS_GONE = "layers leave before units: which units matter is measured in the layers that stay"
_FACTORED = "its projections are products of two matrices by then, and it works on whole ones"
_ROUNDED = "it has learned int8's rounding by then, and this would undo it"

KINDS: Mapping[str, Kind] = {
    "drop_layers": Kind(
        DropLayersSpec,
        {"teacher": "model"},
        cuts=True,
        never_after={"prune_units": _UNITS_GONE, "low_rank": _FACTORED, "qat": _ROUNDED},
    ),
    "prune_units": Kind(
        PruneUnitsSpec,
        {"data": "data", "model": "model"},
        cuts=True,
        never_after={"low_rank": _FACTORED, "qat": _ROUNDED},
    ),
    "reconstruct": Kind(
        ReconstructSpec,
        {"data": "data", "model": "model", "uncut": "uncut"},
        directly_after=("prune_units",),
        why="it makes the cut layers answer as they did before, so nothing may have trained them since",
    ),
    "low_rank": Kind(
        LowRankSpec,
        {"data": "data", "model": "model"},
        cuts=True,
        never_after={"low_rank": _FACTORED, "qat": _ROUNDED},
    ),
    "finetune": Kind(
        FinetuneSpec,
        {"data": "data", "model": "model"},
        never_after={"qat": _ROUNDED},
        after_a_cut=True,
        why="the recipe's own `finetune` has trained the uncut model already",
    ),
    "distil": Kind(
        DistilSpec,
        {"data": "data", "student": "model", "lessons": "lessons", "teacher": "teacher"},
        never_after={"qat": _ROUNDED},
        after_a_cut=True,
        why="an uncut model is its own teacher and has nothing to learn",
    ),
    "qat": Kind(
        QatSpec,
        {"data": "data", "student": "model", "lessons": "lessons"},
        never_after={"low_rank": _FACTORED, "qat": "once is enough: give it more steps"},
    ),
    "quantize": Kind(QuantizeSpec, {}, gives="graph"),
}
_QUANTIZED = "it works on the model, and 'quantize' has left only a graph: put 'quantize' last"


def refusal(name: str, before: Sequence[str]) -> str | None:
    """Why pass `name` cannot follow the passes `before` (first to last), or None if it can."""
    kind = KINDS[name]
    if any(KINDS[earlier].gives == "graph" for earlier in before):
        return f"'{name}' cannot follow 'quantize': {_QUANTIZED}"
    for earlier, reason in kind.never_after.items():
        if earlier in before:
            return f"'{name}' cannot follow '{earlier}': {reason}"
    if kind.directly_after and (not before or before[-1] not in kind.directly_after):
        wanted = " or ".join(f"'{other}'" for other in kind.directly_after)
        return f"'{name}' must come directly after {wanted}: {kind.why}"
    if kind.after_a_cut and not any(KINDS[earlier].cuts for earlier in before):
        cutting = ", ".join(f"'{other}'" for other, one in KINDS.items() if one.cuts)
        return f"'{name}' must come after one of {cutting}: {kind.why}"
    return None


class Step(Strict):
    """One entry of `passes`: the pass's name and its settings, `{drop_layers: {keep: 4}}`, or the name alone."""

    drop_layers: DropLayersSpec | None = None
    prune_units: PruneUnitsSpec | None = None
    reconstruct: ReconstructSpec | None = None
    low_rank: LowRankSpec | None = None
    finetune: FinetuneSpec | None = None
    distil: DistilSpec | None = None
    qat: QatSpec | None = None
    quantize: QuantizeSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_pass(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {value: None}
        if isinstance(value, dict):
            if len(value) != 1:
                raise ValueError(f"one entry is one pass, this one names {len(value)}")
            return {name: {} if settings is None else settings for name, settings in value.items()}
        return value

    @property
    def name(self) -> str:
        """The pass's name."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def spec(self) -> Strict:
        """The pass's settings."""
        return cast(Strict, getattr(self, self.name))

    @property
    def roles(self) -> Mapping[str, Handed]:
        """The pass's input roles -> what it is handed."""
        roles = dict(KINDS[self.name].roles)
        if self.prune_units is not None and self.prune_units.cost_share is not None:
            roles["widths"] = "widths"
        if self.distil is not None and self.distil.needs_teacher:
            roles["teacher"] = "teacher"
        return roles

    @model_serializer
    def _short(self) -> dict[str, SerializeAsAny[Strict]]:
        return {self.name: self.spec}
