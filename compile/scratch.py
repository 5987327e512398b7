"""Writes what a base lacks: the folder of one from scratch, with random weights that follow from its seed; a
tokenizer.json where there is a vocabulary only. Imports torch and transformers."""

from __future__ import annotations

import json

import torch
import transformers
from safetensors.torch import save
from tokenizers import Tokenizer

from compile.bases import CONFIG, TOKENIZER, WEIGHTS, Base
from compile.checkpoint import load_config
from compile.errors import BaseError
from compile.families import family_of
from compile.model import Classifier
from compile.soundness import check_tokenizer, covers
from models.store import write_atomic


def fill(base: Base) -> None:
    """Write what is missing of a base, file by file, weights last; raises BaseError if its tokenizer cannot be made."""
    if base.seed is None and not base.tokenizer.is_file():
        made = _made_of_vocabulary(base)
        write_atomic(base.tokenizer, made.encode())
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


def _made_of_vocabulary(base: Base) -> str:
    """The tokenizer.json that transformers makes of a vocabulary and of what is said there of special tokens."""
    try:
        made: str = transformers.AutoTokenizer.from_pretrained(
            str(base.path), local_files_only=True, trust_remote_code=False
        ).backend_tokenizer.to_str()
    except Exception as error:  # each kind of tokenizer fails in ways of its own
        raise _no_tokenizer(base, str(error)) from error
    tokenizer = Tokenizer.from_str(made)
    # Where transformers misses the vocabulary that the model's type should have, it makes do with special tokens.
    if not covers(tokenizer, base.config):
        raise _no_tokenizer(base, f"it comes to {tokenizer.get_vocab_size()} tokens")
    check_tokenizer(tokenizer, base.path, base.config)
    return made


def _no_tokenizer(base: Base, why: str) -> BaseError:
    problem = f"no {TOKENIZER} can be made of the vocabulary in {base.path} ({why})"
    return BaseError("base", problem, f"save the model's fast tokenizer there, as {TOKENIZER}")
