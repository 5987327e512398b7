"""What a base's files must be before anything is trained on them. Torch is not needed, and weights are not read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compile.errors import BaseError
from compile.families import family_of
from compile.families.table import Family
from compile.text import pad_id

_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a Git LFS pointer begins, see the specification in git-lfs's docs/spec.md."""
_VOCABULARY_SIZE = "vocab_size"


def refuse_pointer(path: Path) -> None:
    """Raises BaseError if a file is a Git LFS pointer to what it should hold."""
    with path.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            problem = f"{path} is a Git LFS pointer, not the file itself"
            raise BaseError("base", problem, "run `git lfs pull` in its folder, or download the file")


def read_config(path: Path) -> dict[str, Any]:
    """A config.json of a known family, with every figure that compiling asks for; raises BaseError naming the field."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model_type = str(config["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise BaseError("base", f"{path} names no model_type", "use a transformers folder") from error
    family = family_of(model_type)
    for key in _figures(family):
        value = config.get(key)
        if type(value) is not int or value < 1:
            problem = f"{path}: '{key}' is {'missing' if key not in config else f'{value!r}, no whole number above 0'}"
            raise BaseError("base", problem, f"take the config.json that was saved with these {model_type} weights")
    if family.head_size_key is None and config[family.hidden_size_key] % config[family.heads_key]:
        problem = f"{path}: '{family.hidden_size_key}' cannot be shared evenly by '{family.heads_key}'"
        raise BaseError("base", problem, f"take the config.json that was saved with these {model_type} weights")
    made: dict[str, Any] = config
    return made


def _figures(family: Family) -> list[str]:
    optional = [key for key in (family.head_size_key, family.position_limit_key) if key is not None]
    named = (family.layer_count_key, family.hidden_size_key, family.output_size_key, family.heads_key)
    return [*named, _VOCABULARY_SIZE, *optional]


def check_weights(path: Path) -> None:
    """Read the header of a safetensors file; raises BaseError if it is none, or not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy"):
            pass
    except SafetensorError as error:
        problem = f"{path} is no safetensors file, or not all of one ({error})"
        raise BaseError("base", problem, "download it again; weights in other formats are never unpickled") from error


def check_tokenizer(tokenizer: Tokenizer, path: Path, config: Mapping[str, Any]) -> None:
    """Raises BaseError if texts or padding need tokens that the weights have no vector for.

    Special tokens beyond the vocabulary, which some tokenizers add whether or not a model knows them, are let be.
    """
    words = tokenizer.get_vocab(with_added_tokens=False).values()
    highest, size = max([*words, pad_id(tokenizer)]), int(config[_VOCABULARY_SIZE])
    if highest >= size:
        problem = f"{path}: the tokenizer has a token number {highest}, config.json's '{_VOCABULARY_SIZE}' is {size}"
        raise BaseError("base", problem, "give the tokenizer that the weights were trained with")


def covers(tokenizer: Tokenizer, config: Mapping[str, Any]) -> bool:
    """Whether a tokenizer knows a good part of the tokens that the weights have vectors for."""
    return 2 * tokenizer.get_vocab_size(with_added_tokens=False) > int(config[_VOCABULARY_SIZE])
