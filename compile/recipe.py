"""Schema of a recipe: what to compile, from which data and base weights, into which variants.

Unknown keys, wrong types and out-of-range values raise `RecipeError` naming the field. `data` and `base` may use
`${NAME}` for environment variables; relative paths are taken from the current directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, ValidationError, field_validator, model_validator

from compile.bases import BaseSpec
from compile.errors import RecipeError
from compile.specs.base import Share, Strict
from compile.specs.calibrate import CalibrateSpec
from compile.specs.finetune import FinetuneSpec
from compile.specs.quantize import QuantizeSpec
from compile.steps import KINDS, Step, refusal
from models.manifest import NAME_PATTERN

GraphForm = Literal["ragged", "torchscript", "mha", "dynamo"]
REFERENCE = "fp32"
"""Name of the variant that every recipe has: the teacher as it is."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class DataSpec(Strict):
    """Where the labelled texts come from, and how much of them is used."""

    source: str = Field(min_length=1)
    """`support-intents` (built in), a parquet or CSV file, a folder of split files, or a hub id."""
    task: Literal["classification", "regression"] = "classification"
    """What the column `label` holds: the number or name of a class, or a real number."""
    max_train_rows: int | None = Field(default=None, ge=1)
    """Train on a seeded random subset of at most this many rows."""
    max_judged_rows: int | None = Field(default=None, ge=16)
    """Choose (validation) and judge (test) on seeded random subsets of at most this many rows each; the bounds widen
    accordingly."""
    validation_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the training rows carved out for validation where the data set brings none."""


class VariantSpec(Strict):
    """One operating point to compile."""

    name: str = Field(pattern=NAME_PATTERN)
    passes: tuple[Step, ...] = ()
    """What makes it out of the teacher, in this order (see `compile.steps`). Quantizing comes last by itself."""
    min_relative_accuracy: Share = 0.0
    """Floor: accuracy / the fp32 teacher's accuracy on the test texts, by its lower bound (paired bootstrap, one-sided
    95 %)."""

    _short: bool = PrivateAttr(False)

    @model_validator(mode="wrap")
    @classmethod
    def _either_form(cls, value: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        """`layers: [1, 3]` and `distil: {…}` stand for `passes: [{drop_layers: …}, {distil: …}]`."""
        long = cls._long_form(value)
        made = build(long)
        made._short = long is not value
        return made

    @staticmethod
    def _long_form(value: Any) -> Any:
        short = [name for name in ("layers", "distil") if isinstance(value, dict) and name in value]
        if not short:
            return value
        if "passes" in value:
            raise ValueError(f"give either `passes` or {' and '.join(f'`{name}`' for name in short)}")
        kept = {name: setting for name, setting in value.items() if name not in short}
        if value.get("layers") is None:
            if "distil" in short:
                raise ValueError("`distil` asks for `layers`: an uncut model has nothing to learn from itself")
            return kept
        cut, trained = {"drop_layers": {"layers": value["layers"]}}, {"distil": value.get("distil") or {}}
        return {**kept, "passes": [cut, trained]}

    def layers_left(self, have: int, field: str) -> int:
        """How many of the base's `have` layers stay; RecipeError, naming a field of `field`, if there are too few."""
        for at, step in enumerate(self.passes):
            if step.drop_layers is None:
                continue
            wanted, keep = step.drop_layers.layers, step.drop_layers.keep
            place, remedy = field if self._short else f"{field}.passes.{at}.drop_layers", "keep layers that there are"
            if wanted and wanted[-1] >= have:
                problem = f"layer {wanted[-1]} does not exist, there are layers 0 to {have - 1}"
                raise RecipeError(f"{place}.layers", problem, remedy)
            if keep is not None and keep > have:
                raise RecipeError(f"{place}.keep", f"{keep} of {have} layers cannot be kept", remedy)
            have = len(wanted) if wanted is not None else have if keep is None else keep
        return have

    @property
    def model_steps(self) -> tuple[Step, ...]:
        """The steps that make another model; none where the teacher itself is quantized."""
        return tuple(step for step in self.passes if KINDS[step.name].gives == "model")

    def quantize_spec(self, default: QuantizeSpec) -> QuantizeSpec:
        """How this variant is quantized: its own settings over the recipe's."""
        own = self.passes[-1].quantize if self.passes else None
        return default if own is None else default.model_copy(update=own.model_dump(exclude_unset=True))


class ExportSpec(Strict):
    """How the graph is written."""

    forms: tuple[GraphForm, ...] = Field(default=("ragged", "torchscript", "mha", "dynamo"), min_length=1)
    """Graph forms to try; the one that measures cheapest at the data's lengths is published."""
    opset: int = Field(default=18, ge=17, le=23)


class MeasureSpec(Strict):
    """How variants are measured."""

    batch_rows: int = Field(default=16, ge=1, le=256)
    """Rows of a batch as served."""
    repeats: int = Field(default=3, ge=1, le=50)
    texts: int = Field(default=1024, ge=16)
    """Texts (of the test split) whose CPU time is measured."""


class Recipe(Strict):
    """A whole recipe file."""

    family: str = Field(pattern=NAME_PATTERN)
    data: DataSpec
    base: BaseSpec
    pooling: Literal["mean", "cls", "last"] = "mean"
    seed: int = Field(default=7, ge=0)
    threads: int = Field(default=2, ge=1, le=256)
    max_tokens: int = Field(default=128, ge=8, le=4096)
    """Texts are cut to so many tokens while training and measuring (the server may take longer ones)."""
    finetune: tuple[FinetuneSpec, ...] = Field(default=(FinetuneSpec(),), min_length=1)
    """How the teacher is trained; several entries are stages, each going on from the one before (for instance with the
    embeddings frozen first, then all weights at a low rate)."""
    average_stages: bool = False
    """The teacher is the mean of its weights after each stage; wants two stages or more."""
    export: ExportSpec = Field(default_factory=ExportSpec)
    quantize: QuantizeSpec = Field(default_factory=QuantizeSpec)
    measure: MeasureSpec = Field(default_factory=MeasureSpec)
    calibrate: CalibrateSpec = Field(default_factory=CalibrateSpec)
    variants: tuple[VariantSpec, ...] = Field(min_length=1)

    @property
    def calibrates(self) -> bool:
        """Whether temperatures and cascades are looked for; one number has no confidence."""
        return self.calibrate.enabled and self.data.task == "classification"

    @model_validator(mode="after")
    def _something_to_average(self) -> Self:
        if self.average_stages and len(self.finetune) < 2:
            raise ValueError("average_stages: give `finetune` two stages or more, there is nothing to average")
        return self

    @field_validator("finetune", mode="before")
    @classmethod
    def _one_stage(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @field_validator("data", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


def load_recipe(path: Path, overrides: Mapping[str, str] | None = None, env: Mapping[str, str] = os.environ) -> Recipe:
    """Read a recipe file and apply overrides (`data`, `base`, `family`).

    Raises RecipeError naming the file or field if it cannot be read, is no mapping, or breaks the schema.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), f"cannot be read ({_reason(error)})", "give the path of a recipe file") from error
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
    elif isinstance(values.get("base"), dict) and isinstance(values["base"].get("tokenizer"), str):
        values["base"] = {**values["base"], "tokenizer": _expand("base.tokenizer", values["base"]["tokenizer"], env)}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise _named(error, values) from error
    _check_variants(recipe, values)
    return recipe


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return str(error) if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)


def _named(error: ValidationError, values: Mapping[str, Any]) -> RecipeError:
    """The first thing that is wrong, by the name it has in the file."""
    first = error.errors()[0]
    location = _as_written(first["loc"], values)
    field = ".".join(str(part) for part in location) or "recipe"
    if first["type"] != "extra_forbidden":
        found = first["msg"].removeprefix("Value error, ")
        if first["type"] == "string_pattern_mismatch":
            found = f"{first['input']!r} does not match {first['ctx']['pattern']}"
        return RecipeError(field, found, "correct this field of the recipe")
    if len(location) > 2 and location[-3] == "passes":
        return RecipeError(field, "no such pass", f"choose among {', '.join(KINDS)}")
    return RecipeError(field, "no such field", "remove it, or see compile/recipe.py for the fields")


def _as_written(location: tuple[int | str, ...], values: Mapping[str, Any]) -> tuple[int | str, ...]:
    """Where the short form was used: `variants.1.layers`, not the step it stands for; `finetune.epochs`, no stage."""
    match location:
        case ("finetune", int(), *rest) if isinstance(values.get("finetune"), dict):
            return ("finetune", *rest)
        case ("variants", int(at), "passes", int(), "drop_layers" | "distil" as step, *rest):
            if "passes" not in values["variants"][at]:
                return ("variants", at, *((rest or ["layers"]) if step == "drop_layers" else [step, *rest]))
    return location


def _check_variants(recipe: Recipe, values: Mapping[str, Any]) -> None:
    """Names, and the order of passes: everything that several fields decide together."""
    names = [variant.name for variant in recipe.variants]
    for at, variant in enumerate(recipe.variants):
        if variant.name in names[:at]:
            raise RecipeError(f"variants.{at}.name", f"'{variant.name}' repeats", "give every variant its own name")
        if variant.name == REFERENCE:
            problem = f"'{REFERENCE}' is taken by the reference variant"
            raise RecipeError(f"variants.{at}.name", problem, "choose another name")
        steps = [step.name for step in variant.passes]
        for place, name in enumerate(steps):
            reason = refusal(name, steps[:place])
            if reason is None and at == 0 and KINDS[name].cuts:
                reason = "the first variant is full quality and keeps every layer and unit"
            if reason is not None:
                field = _as_written(("variants", at, "passes", place, name), values)
                raise RecipeError(".".join(map(str, field[:4])), reason, "change the order, or take the pass out")


def _expand(field: str, value: str, env: Mapping[str, str]) -> str:
    def lookup(match: re.Match[str]) -> str:
        if match[1] not in env:
            raise RecipeError(field, f"the environment variable {match[1]} is not set", f"export {match[1]}=…")
        return env[match[1]]

    return os.path.expanduser(_VARIABLE.sub(lookup, value))
