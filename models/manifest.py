"""Schema of a published family version: its variants, operating points, evidence and digests.

A manifest is written once by `compile/` and read by `server/`. Every model file in it exposes the same graph:
inputs `input_ids`, `attention_mask` and, where `Manifest.inputs` names it, `token_type_ids` (int64, shape
[rows, tokens]); output `logits` (float32, shape [rows, labels]).

The task says what the logits are and what every `accuracy` in a manifest means:
- text-classification: one logit a label; the share of test texts whose largest logit is that of the right label.
- text-regression: one number, the answer itself in the unit of the training labels; R2 = 1 - mean squared error /
  variance of the test labels, clipped to [0, 1] (0: no better than always answering their mean).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
REQUIRED_INPUTS = {"input_ids", "attention_mask"}
EnergySourceName = Literal["rapl", "nvml", "estimated", "fake"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileRef(_Frozen):
    """A file of the version, by path relative to the manifest, with the digest that must match before it loads."""

    path: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=1)


class CostModel(_Frozen):
    """Weight of one text inside a batch, fitted on measured batches: `fixed_ns + linear_ns*n + quadratic_ns*n^2`.

    `n` is the text's own length in tokens. The weights share a batch's measured CPU time (padding included) among
    its texts; only their ratios matter there. Their absolute scale predicts nanoseconds on the target CPU.
    """

    fixed_ns: float = Field(ge=0)
    linear_ns: float = Field(ge=0)
    quadratic_ns: float = Field(ge=0)
    padding_share: float = Field(default=1.0, ge=0, le=1, description="cost of a padded token / of a real one")

    def weight(self, tokens: int) -> float:
        """Predicted CPU nanoseconds of one text of `tokens` tokens; positive for any length >= 1."""
        return self.fixed_ns + tokens * (self.linear_ns + self.quadratic_ns * tokens) or 1.0


class LatencyCell(_Frozen):
    """Measured one-thread CPU time of one batch shape."""

    rows: int = Field(ge=1)
    tokens: int = Field(ge=1)
    cpu_ms_per_text: float = Field(gt=0)


class Estimate(_Frozen):
    """A measured value between the bounds of its 95 % bootstrap interval over the test rows."""

    value: float
    lower: float
    upper: float


class Evidence(_Frozen):
    """What was measured of one variant; every figure repeatable from the recipe. Unmeasured is None, never 0."""

    accuracy: float = Field(ge=0, le=1, description="share of right labels, or R2 (see the module)")
    accuracy_lower: float = Field(ge=0, le=1, description="one-sided 95 % lower bound")
    relative_accuracy: float = Field(ge=0, description="accuracy / the fp32 teacher's accuracy, same texts")
    relative_accuracy_lower: float | None = Field(default=None, ge=0, description="paired bootstrap, one-sided 95 %")
    test_rows: int = Field(ge=1)
    agreement_with_fp32: float | None = Field(default=None, ge=0, le=1)
    matthews: Estimate | None = Field(default=None, description="Matthews correlation, -1 to 1")
    f1_macro: Estimate | None = Field(default=None, description="mean over the labels of F1, 0 to 1")
    pearson: Estimate | None = Field(default=None, description="regression only, as spearman and rmse")
    spearman: Estimate | None = None
    rmse: Estimate | None = Field(default=None, description="root of the mean squared error, in the label's unit")
    parameters: int = Field(ge=1)
    macs_per_text: int | None = Field(default=None, ge=1, description="at the set's mean length")
    size_bytes: int = Field(ge=1)
    cpu_seconds_per_1k: float = Field(gt=0, description="one thread, batches as served")
    joules_per_1k: float | None = Field(default=None, gt=0, description="dynamic joules per 1,000 texts")
    energy_source: EnergySourceName | None = None
    energy_relative_uncertainty: float | None = Field(default=None, ge=0)
    latency: tuple[LatencyCell, ...] = ()
    compile_cpu_seconds: float | None = Field(default=None, ge=0)
    compile_joules: float | None = Field(default=None, ge=0)
    break_even_requests: int | None = Field(default=None, ge=0)

    @property
    def macs_per_parameter(self) -> float | None:
        """Multiply-accumulates of a text of the set's mean length / parameters; None where MACs were not counted."""
        return None if self.macs_per_text is None else self.macs_per_text / self.parameters


class Variant(_Frozen):
    """One compiled model file of the family: same labels and tokenizer as every other."""

    name: str = Field(pattern=NAME_PATTERN)
    precision: Literal["fp32", "fp16", "int8", "int4"]
    layers: int = Field(ge=0, description="0: a text is the mean of its embeddings")
    graph_form: str = Field(description="the exported form that measured cheapest, e.g. 'dynamo' or 'mha'")
    model: FileRef
    cost: CostModel
    evidence: Evidence
    reference: bool = Field(default=False, description="kept for comparison (fp32); never chosen by the dial")
    lineage: tuple[str, ...] = Field(default=(), description="passes that made it, first to last")
    notes: dict[str, Any] = Field(default_factory=dict)


class Cascade(_Frozen):
    """A cheap variant asked before the point's own one, which then answers only what the cheap one is unsure of.

    `softmax(logits of first / temperature)` is its calibrated confidence; temperature and threshold were chosen on
    the validation split.
    """

    first: str
    temperature: float = Field(gt=0)
    threshold: float = Field(ge=0, le=1, description="a text escalates when its largest probability is below this")
    escalated_share: float = Field(ge=0, le=1, description="of the held-out split")


class OperatingPoint(_Frozen):
    """A way to answer. Position 0 of `Manifest.points` is full quality; each next one is cheaper.

    `variant` answers; where there is a `cascade`, it answers the texts that escalate.
    """

    name: str = Field(pattern=NAME_PATTERN)
    variant: str
    cascade: Cascade | None = None
    accuracy: float = Field(ge=0, le=1)
    accuracy_lower: float = Field(ge=0, le=1)
    relative_accuracy: float = Field(ge=0)
    relative_accuracy_lower: float | None = Field(default=None, ge=0, description="paired bootstrap, one-sided 95 %")
    cpu_seconds_per_1k: float = Field(gt=0, description="of the graphs, in batches as a busy server forms them")
    joules_per_1k: float | None = Field(default=None, gt=0, description="dynamic joules of the same")
    tokenizing_cpu_seconds_per_1k: float | None = Field(
        default=None, gt=0, description="comes on top; a cascade tokenizes once; None: not measured"
    )
    alone_cpu_seconds_per_1k: float | None = Field(
        default=None, gt=0, description="of texts that come alone, tokenizing included; None: not measured"
    )

    @property
    def answer_cpu_seconds_per_1k(self) -> float:
        """In batches, tokenizing included where it was measured."""
        return self.cpu_seconds_per_1k + (self.tokenizing_cpu_seconds_per_1k or 0.0)

    @property
    def answer_joules_per_1k(self) -> float | None:
        """The joules of `answer_cpu_seconds_per_1k`, at as many joules a CPU-second as the graphs drew."""
        return self._joules(self.answer_cpu_seconds_per_1k)

    @property
    def alone_joules_per_1k(self) -> float | None:
        """The joules of `alone_cpu_seconds_per_1k`, likewise; None where either was not measured."""
        return None if self.alone_cpu_seconds_per_1k is None else self._joules(self.alone_cpu_seconds_per_1k)

    def _joules(self, cpu_seconds: float) -> float | None:
        return None if self.joules_per_1k is None else self.joules_per_1k * cpu_seconds / self.cpu_seconds_per_1k


class TargetCpu(_Frozen):
    """The CPU that the quantized files were made and measured for."""

    model: str
    vnni: bool
    reduce_range: bool
    flags: tuple[str, ...] = ()


class Manifest(_Frozen):
    """One immutable version of a family."""

    schema_version: Literal[1] = 1
    family: str = Field(pattern=NAME_PATTERN)
    created_utc: str
    task: Literal["text-classification", "text-regression"] = "text-classification"
    pair: bool = False
    labels: tuple[str, ...] = Field(min_length=1)
    max_tokens: int = Field(ge=1, description="longest input the position table allows, special tokens included")
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    pad_id: int = Field(default=0, ge=0)
    tokenizer: FileRef
    variants: tuple[Variant, ...] = Field(min_length=1)
    points: tuple[OperatingPoint, ...] = Field(min_length=1)
    teacher_accuracy: float = Field(ge=0, le=1)
    target_cpu: TargetCpu
    dataset_sha256: str
    recipe: dict[str, Any] = Field(default_factory=dict)
    libraries: dict[str, str] = Field(default_factory=dict)
    candidates: tuple[dict[str, Any], ...] = Field(default=(), description="every candidate, failed ones with why")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _refuse_repeats("variants", [variant.name for variant in self.variants])
        _refuse_repeats("points", [point.name for point in self.points])
        _refuse_repeats("labels", self.labels)
        if not REQUIRED_INPUTS <= set(self.inputs) <= REQUIRED_INPUTS | {"token_type_ids"}:
            raise ValueError(f"inputs: must be input_ids, attention_mask and at most token_type_ids, not {self.inputs}")
        by_name = {variant.name: variant for variant in self.variants}
        for point in self.points:
            _check_point(point, by_name)
        if self.regression:
            self._check_one_output()
        costs = [point.cpu_seconds_per_1k for point in self.points]
        if costs != sorted(costs, reverse=True):
            raise ValueError("points: must run from full quality to cheapest (falling cpu_seconds_per_1k)")
        return self

    def _check_one_output(self) -> None:
        if len(self.labels) != 1:
            raise ValueError(f"labels: text-regression has one, the name of its number, not {len(self.labels)}")
        for point in self.points:
            if point.cascade is not None:
                raise ValueError(f"points.{point.name}: one number has no confidence that a cascade could go by")

    @property
    def regression(self) -> bool:
        """Whether the one logit is itself the answer, a real number."""
        return self.task == "text-regression"

    @property
    def accuracy_name(self) -> str:
        """What people call the accuracy of this task."""
        return "R2" if self.regression else "accuracy"

    def variant(self, name: str) -> Variant:
        """The variant called `name`; KeyError if there is none."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(name)

    def files(self) -> tuple[FileRef, ...]:
        """Every file the version needs, tokenizer first."""
        return (self.tokenizer, *(v.model for v in self.variants))


def _refuse_repeats(field: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"{field}: names repeat: {list(names)}")


def _check_point(point: OperatingPoint, by_name: Mapping[str, Variant]) -> None:
    cascade = point.cascade
    for asked in (point.variant,) if cascade is None else (point.variant, cascade.first):
        if asked not in by_name:
            raise ValueError(f"points.{point.name}: variant '{asked}' is not in {list(by_name)}")
        if by_name[asked].reference:
            raise ValueError(f"points.{point.name}: variant '{asked}' is for reference only")
    if cascade is None:
        return
    first, second = (by_name[name].evidence.cpu_seconds_per_1k for name in (cascade.first, point.variant))
    if first >= second:  # also when both are the same variant
        raise ValueError(f"points.{point.name}: cascade.first '{cascade.first}' must be cheaper than '{point.variant}'")
