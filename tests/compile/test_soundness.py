"""A base or labels that cannot be used are refused by name before anything is trained or written; a vocabulary will do
where there is no tokenizer.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from compile.bases import find_base
from compile.data.loader import load_dataset
from compile.errors import BaseError, DataError, InputError
from compile.pipeline import compile_recipe
from compile.recipe import DataSpec, parse_recipe
from compile.text import load_tokenizer
from models.store import Store

MakeRecipe = Callable[[Path, Path], dict[str, Any]]
Spoil = Callable[[Path], object]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21461\nsize 9\n"


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A sound base of one's own, to spoil."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def configure(**changed: Any) -> Spoil:
    """Changes fields of config.json; None takes one out."""

    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        kept = {name: value for name, value in {**config, **changed}.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return spoil


def put(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


def halve(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (put("model.safetensors", POINTER), ["model.safetensors is a Git LFS pointer", "git lfs pull"]),
        (put("tokenizer.json", POINTER), ["tokenizer.json is a Git LFS pointer"]),
        (put("model.safetensors", "no weights"), ["model.safetensors is no safetensors file", "download it again"]),
        (halve, ["model.safetensors is no safetensors file, or not all of one"]),
        (put("tokenizer.json", "{"), ["tokenizer.json cannot be read as a tokenizer"]),
        (put("tokenizer.json", "{}"), ["tokenizer.json cannot be read as a tokenizer"]),
        (configure(num_hidden_layers=None), ["'num_hidden_layers' is missing", "config.json that was saved with"]),
        (configure(num_hidden_layers="3"), ["'num_hidden_layers' is '3', no whole number above 0"]),
        (configure(max_position_embeddings=0), ["'max_position_embeddings' is 0"]),
        (configure(hidden_size=33), ["'hidden_size' cannot be shared evenly by 'num_attention_heads'"]),
        (configure(vocab_size=7), ["the tokenizer has a token number", "'vocab_size' is 7"]),
    ],
)  # fmt: skip
def test_a_base_that_is_not_sound_is_refused_before_anything_is_written(
    base: Path, keyword_csv: Path, make_recipe: MakeRecipe, tmp_path: Path, spoil: Spoil, words: list[str]
) -> None:
    spoil(base)
    recipe = parse_recipe(make_recipe(base, keyword_csv), None, {})
    with pytest.raises(BaseError) as refused:
        compile_recipe(recipe, Store(tmp_path / "store"), tmp_path / "work")
    assert isinstance(refused.value, InputError)
    assert str(refused.value).startswith("base: ")
    assert all(word in str(refused.value) for word in [*words, "Remedy: "]), str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_configuration_that_makes_no_model_is_refused_by_name(base: Path) -> None:
    pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
    from compile.checkpoint import from_base

    configure(hidden_act="no-such-function")(base)
    with pytest.raises(BaseError, match="no-such-function"):
        from_base(find_base(str(base)), "mean", 2)


@pytest.mark.parametrize("names", [["bad", "good", "bad"], {"0": "bad", "1": "good", "2": "bad"}])
def test_labels_that_share_a_name_are_refused(tmp_path: Path, names: Iterable[str]) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(names))
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"row {i},{i % 3}\n" for i in range(60)))
    with pytest.raises(DataError, match=r"data\.label: .*labels\.json calls labels 0 and 2 'bad'.* Remedy: "):
        load_dataset(DataSpec(source=str(tmp_path)), 1)


def as_vocabulary(folder: Path) -> None:
    """Leave of the tokenizer what the hub holds of an old BERT: its words, and what is said of special ones."""
    vocabulary = load_tokenizer(folder / "tokenizer.json").get_vocab()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(vocabulary, key=lambda w: vocabulary[w])))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))


def test_a_vocabulary_stands_in_for_a_tokenizer_which_is_made_in_the_work_folder(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
    from compile.scratch import fill

    expected = load_tokenizer(base / "tokenizer.json").encode("Please cancel", "refund")
    as_vocabulary(base)
    before = sorted(path.name for path in base.iterdir())
    found = find_base(str(base), work=tmp_path / "work")
    assert not found.tokenizer.exists()
    fill(found)
    assert found.tokenizer.is_relative_to(tmp_path / "work")
    made = load_tokenizer(found.tokenizer).encode("Please cancel", "refund")
    assert (made.ids, made.type_ids) == (expected.ids, expected.type_ids)
    assert sorted(path.name for path in base.iterdir()) == before
    (base / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert find_base(str(base), work=tmp_path / "work").digest != found.digest


def test_a_vocabulary_that_makes_no_tokenizer_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
    from compile.scratch import fill

    as_vocabulary(base)
    (base / "vocab.txt").rename(base / "vocab.json")
    with pytest.raises(BaseError, match=r"lacks tokenizer\.json, and a vocabulary"):
        find_base(str(base))
    (base / "merges.txt").write_text("")
    with pytest.raises(BaseError, match=r"no tokenizer\.json can be made of the vocabulary"):
        fill(find_base(str(base), work=tmp_path / "work"))
    # Of a kind that the model's type does not have, it would come to the special tokens alone.
    (base / "vocab.json").write_text("{}")
    with pytest.raises(BaseError, match=r"it comes to 5 tokens"):
        fill(find_base(str(base), work=tmp_path / "work"))
    assert not (tmp_path / "work").exists()


@pytest.fixture
def hub(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str | None]:
    """A hub whose models all are `base`; the revisions that were asked for. Only what is asked for comes."""
    asked: list[str | None] = []

    def snapshot_download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(revision)
        snapshot = tmp_path / "hub" / repo_id
        snapshot.mkdir(parents=True, exist_ok=True)
        for path in base.iterdir():
            if path.name in allow_patterns:
                shutil.copy(path, snapshot)
        return str(snapshot)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_hub_id_is_taken_with_the_vocabulary_that_it_has(base: Path, hub: list[str | None]) -> None:
    as_vocabulary(base)
    found = find_base("owner/name")
    assert (found.model_type, found.digest) == ("bert", find_base(str(base)).digest)
    assert find_base("owner/name@refs/pr/28").digest == found.digest
    assert hub == [None, "refs/pr/28"]


def test_a_hub_id_without_safetensors_is_refused_with_the_ways_out(base: Path, hub: list[str | None]) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(BaseError, match=r"lacks model\.safetensors.*never unpickled.*owner/name@REVISION"):
        find_base("owner/name")
