"""Schema of a recipe: what to compile, from which data and base weights, into which variants.

Unknown keys, wrong types and out-of-range values raise `RecipeError` naming the field. `data` and `base` may use
`${NAME}` for environment variables; relative paths are taken from the current directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from compile.errors import RecipeError
from models.manifest import NAME_PATTERN

GraphForm = Literal["ragged", "torchscript", "mha", "dynamo"]
Share = Annotated[float, Field(ge=0, le=1)]
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSpec(_Strict):
    """Where the labelled texts come from, and how much of them is used."""

    source: str = Field(min_length=1)
    """`support-intents` (built in), a parquet or CSV file, a folder of split files, or a hub id."""
    max_train_rows: int | None = Field(default=None, ge=1)
    """Train on a seeded random subset of at most this many rows."""
    validation_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the training rows carved out for validation where the data set brings none."""


class FinetuneSpec(_Strict):
    """How the teacher is trained."""

    epochs: int = Field(default=3, ge=1, le=100)
    batch_rows: int = Field(default=32, ge=1, le=1024)
    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    head_learning_rate_factor: float = Field(default=10.0, gt=0)
    """The new head learns this many times faster than the encoder."""
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_share: Share = 0.1
    dropout: float = Field(default=0.0, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    freeze_embeddings: bool = True
    """Word, position and type tables stay as they are: they hold half of the parameters and learn little."""
    freeze_layers: int = Field(default=0, ge=0)
    """So many layers, counted from the input, stay as they are."""


class DistilSpec(_Strict):
    """How a student with fewer layers is trained to answer as the teacher does."""

    epochs: int = Field(default=3, ge=1, le=200)
    batch_rows: int = Field(default=32, ge=1, le=1024)
    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_share: Share = 0.1
    temperature: float = Field(default=2.0, gt=0)
    soft_weight: float = Field(default=1.0, ge=0)
    """Weight of the divergence from the teacher's softened answers."""
    hard_weight: float = Field(default=0.2, ge=0)
    """Weight of the cross entropy with the true labels."""
    pooled_weight: float = Field(default=1.0, ge=0)
    """Weight of the distance between the pooled sentence vectors of student and teacher."""
    freeze_embeddings: bool = True


class VariantSpec(_Strict):
    """One operating point to compile."""

    name: str = Field(pattern=NAME_PATTERN)
    layers: tuple[int, ...] | None = None
    """Indices of the teacher's layers that the student starts from; none = all, the teacher itself."""
    distil: DistilSpec = Field(default_factory=DistilSpec)
    min_relative_accuracy: Share = 0.0
    """Floor: accuracy / the fp32 teacher's accuracy, same texts."""

    @field_validator("layers")
    @classmethod
    def _rising(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or list(value) != sorted(set(value)) or value[0] < 0):
            raise ValueError("give the kept layers as rising indices from 0, at least one")
        return value


class ExportSpec(_Strict):
    """How the graph is written."""

    forms: tuple[GraphForm, ...] = Field(default=("ragged", "torchscript", "mha", "dynamo"), min_length=1)
    """Graph forms to try; the one that measures cheapest at the data's lengths is published."""
    opset: int = Field(default=18, ge=17, le=23)


class QuantizeSpec(_Strict):
    """How int8 is reached and what it may cost."""

    min_agreement: Share = 0.99
    """Share of texts on which int8 must choose the fp32 graph's label, in served batches."""
    target_agreement: Share = 0.994
    """Remedies go on until validation texts agree this well, so that unseen texts keep `min_agreement`."""
    max_fp32_matmuls: int = Field(default=6, ge=0)
    """At most so many sensitive matrix products stay in fp32."""
    embeddings: bool = True
    """Quantize large embedding tables too: a quarter of the size, no saving in time."""


class MeasureSpec(_Strict):
    """How variants are measured."""

    batch_rows: int = Field(default=16, ge=1, le=256)
    """Rows of a batch as served."""
    repeats: int = Field(default=3, ge=1, le=50)
    texts: int = Field(default=1024, ge=16)
    """Texts (of the test split) whose CPU time is measured."""


class Recipe(_Strict):
    """A whole recipe file."""

    family: str = Field(pattern=NAME_PATTERN)
    data: DataSpec
    base: str = Field(min_length=1)
    pooling: Literal["mean", "cls"] = "mean"
    seed: int = Field(default=7, ge=0)
    threads: int = Field(default=2, ge=1, le=256)
    max_tokens: int = Field(default=128, ge=8, le=4096)
    """Texts are cut to so many tokens while training and measuring (the server may take longer ones)."""
    finetune: FinetuneSpec = Field(default_factory=FinetuneSpec)
    export: ExportSpec = Field(default_factory=ExportSpec)
    quantize: QuantizeSpec = Field(default_factory=QuantizeSpec)
    measure: MeasureSpec = Field(default_factory=MeasureSpec)
    variants: tuple[VariantSpec, ...] = Field(min_length=1)

    @field_validator("data", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [v.name for v in self.variants]
        if len(set(names)) != len(names):
            raise ValueError(f"variants: names repeat: {names}")
        if "fp32" in names:
            raise ValueError("variants: the name 'fp32' is taken by the reference variant")
        if self.variants[0].layers is not None:
            raise ValueError("variants.0.layers: the first variant is full quality and keeps every layer")
        return self


def load_recipe(path: Path, overrides: Mapping[str, str] | None = None, env: Mapping[str, str] = os.environ) -> Recipe:
    """Read a recipe file and apply overrides (`data`, `base`, `family`).

    Raises RecipeError naming the file or field if it cannot be read, is no mapping, or breaks the schema.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), f"cannot be read ({error})", "give the path of a recipe file") from error
    except yaml.YAMLError as error:
        raise RecipeError(str(path), f"is not YAML ({error})", "correct the file") from error
    if not isinstance(raw, dict):
        raise RecipeError(str(path), "is not a mapping", "start from one of models/recipes/*.yaml")
    return parse_recipe(raw, overrides, env)


def parse_recipe(raw: dict[str, Any], overrides: Mapping[str, str] | None, env: Mapping[str, str]) -> Recipe:
    """Validate a recipe given as plain data; see `load_recipe`."""
    values = dict(raw)
    if isinstance(values.get("data"), str):
        values["data"] = {"source": values["data"]}
    for field, value in (overrides or {}).items():
        if field == "data":
            values["data"] = {**(values.get("data") or {}), "source": value}
        else:
            values[field] = value
    if isinstance(values.get("data"), dict) and isinstance(values["data"].get("source"), str):
        values["data"] = {**values["data"], "source": _expand("data", values["data"]["source"], env)}
    if isinstance(values.get("base"), str):
        values["base"] = _expand("base", values["base"], env)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "recipe"
        problem = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            raise RecipeError(field, "no such field", "remove it, or see compile/recipe.py for the fields") from error
        raise RecipeError(field, problem, "correct this field of the recipe") from error


def _expand(field: str, value: str, env: Mapping[str, str]) -> str:
    def lookup(match: re.Match[str]) -> str:
        if match[1] not in env:
            raise RecipeError(field, f"the environment variable {match[1]} is not set", f"export {match[1]}=…")
        return env[match[1]]

    return os.path.expanduser(_VARIABLE.sub(lookup, value))
