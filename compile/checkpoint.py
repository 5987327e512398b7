"""Models in folders: a base's weights as a classifier; config.json and safetensors of what passes made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from compile.bases import Base
from compile.errors import BaseError
from compile.factors import shape_factors
from compile.families import family_of
from compile.families.table import Family
from compile.model import Classifier
from compile.surgery import Widths, cut_to, widths_of

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def from_base(base: Base, pooling: str, labels: int) -> Classifier:
    """A classifier with the base's encoder weights and a fresh head; BaseError if weights are missing."""
    family = family_of(base.model_type)
    with _named(base):
        model = Classifier(family, load_config(family, base.config), pooling, labels)
        model.encoder.load_state_dict(_pretrained(family, base).state_dict())
    return model


@contextmanager
def _named(base: Base) -> Iterator[None]:
    """Turn what transformers and torch say of a configuration or of weights that do not fit it into BaseError."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
        words = (str(error) or type(error).__name__).splitlines()[0]
        problem = f"{base.path} cannot be read ({words})"
        raise BaseError("base", problem, "its weights must fit its config.json") from error


def save(model: Classifier, folder: Path) -> None:
    """Write config.json (with every layer's width, if they were cut) and model.safetensors into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"encoder": model.config.to_dict(), "pooling": model.pooling, "labels": model.labels}
    if model.is_cut:
        described["widths"] = dataclasses.asdict(widths_of(model))
    if model.ranks:
        described["ranks"] = model.ranks
    (folder / CONFIG).write_text(json.dumps(described, indent=1, default=str), encoding="utf-8")
    save_model(model, str(folder / WEIGHTS))


def load(folder: Path) -> Classifier:
    """Read back what `save` wrote, in eval mode."""
    described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    family = family_of(described["encoder"]["model_type"])
    model = Classifier(family, load_config(family, described["encoder"]), described["pooling"], described["labels"])
    if "widths" in described:
        cut_to(model, Widths(**described["widths"]))
    shape_factors(model, described.get("ranks", {}))
    load_model(model, str(folder / WEIGHTS))
    return model.eval()


def _pretrained(family: Family, base: Base) -> nn.Module:
    """The base's encoder as transformers reads it: whatever the prefix, old names, tied tables, a language head."""
    encoder_class = getattr(transformers, family.encoder_class)
    options = {**dict(family.encoder_options), "dtype": torch.float32, "local_files_only": True}
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        encoder, found = encoder_class.from_pretrained(
            base.path, config=load_config(family, base.config), output_loading_info=True, **options
        )
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    missing = sorted(found["missing_keys"])
    if missing:
        raise BaseError("base", f"{base.path} lacks the weights {missing[:3]}", "give the folder of a whole encoder")
    return cast(nn.Module, encoder)


def load_config(family: Family, raw: Mapping[str, Any]) -> Any:
    """The transformers configuration of a config.json."""
    known = {key: value for key, value in raw.items() if key not in ("architectures", "_name_or_path", "model_type")}
    config = transformers.AutoConfig.for_model(family.model_type, **known)
    config._attn_implementation = "sdpa"
    if family.causal:
        config.use_cache = False  # nothing is generated
    return config
