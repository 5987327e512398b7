"""The torch model: an encoder of a known family, pooling, a linear head. Saved as config.json and safetensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from compile.bases import Base
from compile.errors import BaseError
from compile.factors import shape_factors
from compile.families import family_of
from compile.families.table import Family
from compile.surgery import Widths, cut_to, widths_of

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Classifier(nn.Module):
    """Encoder, pooling (`mean` over real tokens, the first: `cls`, the `last`) and a linear head over `labels` classes.

    Raises BaseError for a pooling that the family does not allow: a decoder's first token has seen no other.
    """

    def __init__(self, family: Family, config: Any, pooling: str, labels: int) -> None:
        super().__init__()
        if pooling not in family.poolings:
            remedy = f"use one of {list(family.poolings)}"
            raise BaseError("pooling", f"'{pooling}' says nothing of a text in {family.model_type}", remedy)
        encoder_class = getattr(transformers, family.encoder_class)
        self.family, self.config, self.pooling, self.labels = family, config, pooling, labels
        self.encoder: nn.Module = encoder_class(config, **dict(family.encoder_options))
        self.head = nn.Linear(getattr(config, family.output_size_key), labels)
        self.head_size = family.head_size(config.to_dict())
        self.ranks: dict[str, int] = {}
        """Projections that are products of two (`compile.factors`), by `layer.path`: numbers between the two."""
        self.is_cut = False
        """Whether heads or units were cut away (`compile.surgery.cut`): layers then differ from the configuration."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [rows, labels] and pooled vectors [rows, hidden] of int64 inputs [rows, tokens]."""
        options = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **options).last_hidden_state
        pooled = self.pool(states, attention_mask)
        return self.head(pooled), pooled

    def pool(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """One vector a text [rows, hidden] of token states [rows, tokens, hidden]."""
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "last":
            last = (attention_mask.sum(1, keepdim=True) - 1).clamp(min=0).unsqueeze(-1)
            return states.gather(1, last.expand(-1, -1, states.shape[-1])).squeeze(1)
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1.0)

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's layers, first to last."""
        return cast(nn.ModuleList, self.encoder.get_submodule(self.family.layers))

    @property
    def layer_count(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    def keep_layers(self, kept: Sequence[int]) -> None:
        """Drop every layer that is not in `kept` (rising indices)."""
        if self.family.position_bias is not None and kept and kept[0] != 0 and not self.is_cut:
            self._move_position_bias(self.family.position_bias, self.layers[kept[0]])
        parent, _, name = self.family.layers.rpartition(".")
        layers = nn.ModuleList(self.layers[i] for i in kept)
        setattr(self.encoder.get_submodule(parent), name, layers)
        setattr(self.config, self.family.layer_count_key, len(kept))

    def _move_position_bias(self, path: str, layer: nn.Module) -> None:
        """Give the table that the first layer holds for all to the layer that comes to be the first."""
        parent, _, name = path.rpartition(".")
        taker = layer.get_submodule(parent)
        setattr(taker, name, self.layers[0].get_submodule(path))
        cast(Any, taker).has_relative_attention_bias = True

    def set_dropout(self, probability: float) -> None:
        """Set every dropout of the encoder; 0 is a good deal faster on a CPU."""
        for module in self.encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability
            elif isinstance(getattr(module, "dropout", None), float):
                cast(Any, module).dropout = probability

    def freeze(self, embeddings: bool, layers: int) -> None:
        """Stop training the embedding tables and the first `layers` layers."""
        if embeddings:
            for path in self.family.embeddings:
                self.encoder.get_submodule(path).requires_grad_(False)
        for layer in self.layers[:layers]:
            layer.requires_grad_(False)

    def attend_with(self, implementation: str) -> None:
        """Choose the registered attention implementation."""
        cast(Any, self.encoder).set_attn_implementation(implementation)

    def save(self, folder: Path) -> None:
        """Write config.json (with every layer's width, if they were cut) and model.safetensors into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        described = {"encoder": self.config.to_dict(), "pooling": self.pooling, "labels": self.labels}
        if self.is_cut:
            described["widths"] = dataclasses.asdict(widths_of(self))
        if self.ranks:
            described["ranks"] = self.ranks
        (folder / CONFIG).write_text(json.dumps(described, indent=1, default=str), encoding="utf-8")
        save_model(self, str(folder / WEIGHTS))


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


def load(folder: Path) -> Classifier:
    """Read back what `Classifier.save` wrote, in eval mode."""
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
