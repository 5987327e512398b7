"""What a pass is: `requires -> call -> ensures`. The postconditions are the gates a candidate must meet.

A pass reads its inputs' folders and writes into one of its own. The runner (`compile.runner`) keeps that folder under
a key made of the pass, its version, its configuration and the keys of its inputs, so equal work is never done twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from compile.artifact import Artifact
from compile.bases import Base
from compile.data.dataset import Dataset
from compile.families import family_of
from compile.text import Encoded, encode, load_tokenizer, pad_id


@dataclass(frozen=True)
class Gate:
    """One postcondition: a measured value against a limit."""

    name: str
    measured: float
    limit: float
    at_most: bool = False
    """True: measured must not exceed the limit; False: it must reach it."""
    detail: str = ""
    field: str = ""
    """The recipe's field that sets the limit; empty where no recipe does."""

    @property
    def holds(self) -> bool:
        """Whether the postcondition is met (a NaN never is)."""
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit

    def describe(self) -> str:
        """The gate in words, with measured value and limit."""
        sign = "<=" if self.at_most else ">="
        tail = f" ({self.detail})" if self.detail else ""
        return f"{self.name} {self.measured:.6g}, must be {sign} {self.limit:.6g}{tail}"


Inputs = Mapping[str, Artifact]


@dataclass
class Context:
    """What every pass may use: data, base weights, tokenizer, and where to report progress."""

    dataset: Dataset
    base: Base
    seed: int
    threads: int
    max_tokens: int
    batch_rows: int
    """Rows of a batch as served."""
    progress: Callable[[float, str], None] = lambda share, note: None
    note_spent: Callable[[], None] = lambda: None
    """Called at checkpoints: puts the cost so far on disk, so that a killed run's cost is not forgotten."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of a graph's inputs, in order."""
        return family_of(self.base.model_type).input_names(self.dataset.pair)

    @cached_property
    def answer_unit(self) -> float:
        """What gates measure differences between answers by (see `LabelScale.unit`)."""
        return self.dataset.label_scale.unit

    @cached_property
    def pad(self) -> int:
        """Number of the padding token."""
        return pad_id(load_tokenizer(self.base.tokenizer))

    @cached_property
    def train(self) -> Encoded:
        """Training rows, tokenized."""
        return self._encode("train")

    @cached_property
    def validation(self) -> Encoded:
        """Validation rows, tokenized."""
        return self._encode("validation")

    @cached_property
    def test(self) -> Encoded:
        """Test rows, tokenized; passes that choose anything must not look at them."""
        return self._encode("test")

    def _encode(self, split: str) -> Encoded:
        tokenizer = load_tokenizer(self.base.tokenizer, self.max_tokens)
        return encode(tokenizer, getattr(self.dataset, split), "token_type_ids" in self.input_names)


class Pass(ABC):
    """A step of the compile line."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """As in `compile.passes.versions`."""

    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """Everything besides the inputs that decides the output; part of the cache key. Plain data only."""

    def requires(self, inputs: Inputs, context: Context) -> None:  # noqa: B027
        """Check the inputs; raises RequirementFailed naming what is wrong."""

    @abstractmethod
    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Do the work into folder `out` and return what is worth knowing (plain data).

        `out` may hold this pass's own files `checkpoint*` from a run that was killed, and nothing else.
        """

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """The postconditions, measured."""
        return []
