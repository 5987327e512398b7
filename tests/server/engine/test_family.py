"""A version is brought into memory whole and warm, or refused with the name of the file that is no use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.store import Store, Version
from server.engine.errors import BackendFailure
from server.engine.family import Family, load_family
from server.engine.runtime import pad
from server.engine.tokenizer import Text, Tokens
from tests.support.tiny_family import publish_tiny_family


def test_every_variant_of_the_front_is_loaded(family: Family) -> None:
    assert set(family.runtimes) == {"full", "lite", "nano"}
    assert [family.rank(name) for name in ("full", "lite", "nano")] == [0, 1, 2]
    assert family.has(["nano", "full"])
    assert not family.has(["full", "best"])


def test_a_variant_that_no_point_uses_stays_on_disk(tiny_version: Version) -> None:
    manifest = tiny_version.manifest.model_copy(update={"points": tiny_version.manifest.points[:1]})
    assert set(load_family(replace(tiny_version, manifest=manifest)).runtimes) == {"full"}


def test_the_variant_that_only_a_cascade_asks_is_loaded(tmp_path: Path) -> None:
    version = publish_tiny_family(Store(tmp_path), threshold=0.6)
    manifest = version.manifest.model_copy(update={"points": version.manifest.points[:2]})
    assert set(load_family(replace(version, manifest=manifest)).runtimes) == {"full", "nano"}


def test_a_family_of_pairs_is_warmed_with_pairs(tmp_path: Path) -> None:
    pairs = load_family(publish_tiny_family(Store(tmp_path), pair=True))
    tokens = pairs.tokenizer.encode(Text("card", "refund refund"), truncate=None)
    assert pairs.runtimes["full"].run([tokens]).tolist() == [[1.0, 2.0, 0.0]]


@pytest.mark.parametrize(("name", "content"), [("full.onnx", b"no model"), ("tokenizer.json", b"{}")])
def test_a_file_that_does_not_load_is_named(tiny_version: Version, name: str, content: bytes) -> None:
    (tiny_version.path / name).write_bytes(content)
    with pytest.raises(BackendFailure, match=name):
        load_family(tiny_version)


def test_a_model_that_gives_another_number_of_scores_than_there_are_labels_is_refused(tiny_version: Version) -> None:
    manifest = tiny_version.manifest.model_copy(update={"labels": ("card", "refund")})
    with pytest.raises(BackendFailure, match=r"full\.onnx: warm-up gave scores of shape \(1, 3\)"):
        load_family(replace(tiny_version, manifest=manifest))


rows = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=20), min_size=1, max_size=8)


@given(rows, st.booleans())
def test_padding_keeps_every_token_and_masks_the_rest(batch: list[list[int]], typed: bool) -> None:
    ids, mask, types = pad([Tokens(row, [1] * len(row) if typed else None) for row in batch], pad_id=7)
    assert ids.shape == mask.shape == (len(batch), max(map(len, batch)))
    assert [row[kept == 1].tolist() for row, kept in zip(ids, mask, strict=True)] == batch
    assert set(ids[mask == 0].tolist()) <= {7}
    assert (types is not None) == typed
    assert types is None or bool(np.array_equal(types, mask))
