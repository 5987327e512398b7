"""Writes the folder of a base from scratch: random weights that follow from its seed. Imports torch."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save

from compile.bases import CONFIG, TOKENIZER, WEIGHTS, Base
from compile.families import family_of
from compile.model import Classifier, load_config
from models.store import write_atomic


def fill(base: Base) -> None:
    """Write what is missing of a base from scratch (weights last, file by file); any other base is left alone."""
    if base.seed is None or (base.path / WEIGHTS).is_file():
        return
    family = family_of(base.model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(base.seed)
        model = Classifier(family, load_config(family, base.config), family.poolings[0], 1)
    shared: dict[int, str] = {}
    tensors = {}
    for name, tensor in model.encoder.state_dict().items():
        # A table that two modules share is stored once, as transformers does.
        if shared.setdefault(tensor.data_ptr(), name) == name:
            tensors[name] = tensor.contiguous()
    write_atomic(base.path / TOKENIZER, base.tokenizer.read_bytes())
    write_atomic(base.path / CONFIG, json.dumps(dict(base.config), indent=1).encode())
    write_atomic(base.path / WEIGHTS, save(tensors, {"format": "pt"}))
