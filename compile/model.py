"""The torch model: an encoder of a known family, pooling, a linear head. Saved as config.json and safetensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compile.bases import Base
from compile.errors import BaseError
from compile.families import family_of
from compile.families.table import Family

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Classifier(nn.Module):
    """Encoder, pooling (`mean` over real tokens, or `cls`) and a linear head over `labels` classes."""

    def __init__(self, family: Family, config: Any, pooling: str, labels: int) -> None:
        super().__init__()
        encoder_class = getattr(transformers, family.encoder_class)
        self.family, self.config, self.pooling, self.labels = family, config, pooling, labels
        self.encoder: nn.Module = encoder_class(config, **dict(family.encoder_options))
        self.head = nn.Linear(getattr(config, family.hidden_size_key), labels)

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
        parent, _, name = self.family.layers.rpartition(".")
        layers = nn.ModuleList(self.layers[i] for i in kept)
        setattr(self.encoder.get_submodule(parent), name, layers)
        setattr(self.config, self.family.layer_count_key, len(kept))

    def set_dropout(self, probability: float) -> None:
        """Set every dropout of the encoder; 0 is a good deal faster on a CPU."""
        for module in self.encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability

    def freeze(self, embeddings: bool, layers: int) -> None:
        """Stop training the embedding tables and the first `layers` layers."""
        if embeddings:
            self.encoder.get_submodule(self.family.embeddings).requires_grad_(False)
        for layer in self.layers[:layers]:
            layer.requires_grad_(False)

    def attend_with(self, implementation: str) -> None:
        """Choose the registered attention implementation."""
        cast(Any, self.encoder).set_attn_implementation(implementation)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        described = {"encoder": self.config.to_dict(), "pooling": self.pooling, "labels": self.labels}
        (folder / CONFIG).write_text(json.dumps(described, indent=1, default=str), encoding="utf-8")
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, str(folder / WEIGHTS))


def from_base(base: Base, pooling: str, labels: int) -> Classifier:
    """A classifier with the base's encoder weights and a fresh head; BaseError if weights are missing."""
    family = family_of(base.model_type)
    raw = json.loads((base.path / CONFIG).read_text(encoding="utf-8"))
    model = Classifier(family, _config(family, raw), pooling, labels)
    stored = load_file(str(base.path / WEIGHTS))
    prefix = f"{family.model_type}."
    stored = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
    wanted = set(model.encoder.state_dict())
    missing = sorted(wanted - set(stored))
    if missing:
        raise BaseError("base", f"{base.path} lacks the weights {missing[:3]}", "give the folder of a whole encoder")
    model.encoder.load_state_dict({name: stored[name] for name in wanted})
    return model


def load(folder: Path) -> Classifier:
    """Read back what `Classifier.save` wrote, in eval mode."""
    described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    family = family_of(described["encoder"]["model_type"])
    model = Classifier(family, _config(family, described["encoder"]), described["pooling"], described["labels"])
    model.load_state_dict(load_file(str(folder / WEIGHTS)))
    return model.eval()


def _config(family: Family, raw: dict[str, Any]) -> Any:
    known = {key: value for key, value in raw.items() if key not in ("architectures", "_name_or_path", "model_type")}
    config = transformers.AutoConfig.for_model(family.model_type, **known)
    config._attn_implementation = "sdpa"
    return config
