"""A version from a store elsewhere arrives whole and verified, or not at all."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest

import models.remote
from models.remote import fetch
from models.store import Corrupt, NotFound, Store, StoreError, Version
from tests.support.tiny_family import publish_tiny_family


@pytest.fixture
def elsewhere(tmp_path: Path) -> tuple[Store, Version]:
    store = Store(tmp_path / "elsewhere")
    return store, publish_tiny_family(store)


@pytest.fixture
def here(tmp_path: Path) -> Store:
    return Store(tmp_path / "here")


def test_the_version_in_force_there_becomes_current_here_under_its_own_name(
    elsewhere: tuple[Store, Version], here: Store
) -> None:
    other, first = elsewhere
    second = publish_tiny_family(other, scale=2.0)
    assert fetch(other.root.as_uri(), here, "tiny").name == second.name
    assert here.current("tiny") == second.name
    assert here.open("tiny").manifest == second.manifest
    assert fetch(str(other.root), here, "tiny", first.name).name == first.name
    assert here.versions("tiny") == [first.name, second.name]
    assert here.current("tiny") == first.name


def test_any_file_system_that_fsspec_knows_will_do(elsewhere: tuple[Store, Version], here: Store) -> None:
    place = f"memory://{uuid.uuid4().hex}"
    files, root = fsspec.core.url_to_fs(place)
    files.put(f"{elsewhere[0].root}/tiny", f"{root}/tiny", recursive=True)
    assert fetch(place, here, "tiny").manifest == elsewhere[1].manifest


def test_what_is_here_already_is_not_fetched_again(elsewhere: tuple[Store, Version], here: Store) -> None:
    other, version = elsewhere
    fetch(str(other.root), here, "tiny")
    version.file(version.manifest.tokenizer).unlink()
    assert fetch(str(other.root), here, "tiny").name == version.name


@pytest.mark.parametrize("victim", ["manifest.json", "nano.onnx", "tokenizer.json"])
def test_what_went_corrupt_here_is_fetched_again(elsewhere: tuple[Store, Version], here: Store, victim: str) -> None:
    other, version = elsewhere
    fetched = fetch(str(other.root), here, "tiny")
    (fetched.path / victim).write_bytes(b"{}")
    with pytest.raises(Corrupt):
        here.open("tiny")
    assert fetch(str(other.root), here, "tiny").name == version.name
    assert here.open("tiny").manifest == version.manifest
    assert sorted(path.name for path in (here.root / "tiny").iterdir()) == [version.name, "current"]


def test_what_went_corrupt_here_stays_while_nothing_sound_can_be_had(
    elsewhere: tuple[Store, Version], here: Store
) -> None:
    other, version = elsewhere
    fetched = fetch(str(other.root), here, "tiny")
    (fetched.path / "nano.onnx").write_bytes(b"here")
    (version.path / "nano.onnx").write_bytes(b"there")
    with pytest.raises(Corrupt):
        fetch(str(other.root), here, "tiny")
    assert (fetched.path / "nano.onnx").read_bytes() == b"here"
    assert sorted(path.name for path in (here.root / "tiny").iterdir()) == [version.name, "current"]


def test_what_a_killed_fetch_left_goes_at_the_next_one(elsewhere: tuple[Store, Version], here: Store) -> None:
    for name in (".publishing-abc", ".pruned-0001-abcdefabcdef"):
        (here.root / "tiny" / name).mkdir(parents=True)
        (here.root / "tiny" / name / "half.onnx").write_bytes(b"half")
    version = fetch(str(elsewhere[0].root), here, "tiny")
    assert sorted(path.name for path in (here.root / "tiny").iterdir()) == [version.name, "current"]


@pytest.mark.parametrize("victim", ["manifest.json", "nano.onnx", "tokenizer.json"])
def test_a_changed_byte_is_refused_and_leaves_nothing(
    elsewhere: tuple[Store, Version], here: Store, victim: str
) -> None:
    other, version = elsewhere
    path = version.path / victim
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError):
        fetch(str(other.root), here, "tiny")
    assert here.versions("tiny") == []
    assert list((here.root / "tiny").iterdir()) == []


def test_a_file_that_is_longer_than_the_manifest_says_is_not_read_to_its_end(
    elsewhere: tuple[Store, Version], here: Store
) -> None:
    other, version = elsewhere
    with version.file(version.manifest.tokenizer).open("ab") as stream:
        stream.write(b"x" * 5_000_000)
    with pytest.raises(StoreError, match=r"tokenizer\.json: more than"):
        fetch(str(other.root), here, "tiny")


def test_a_missing_family_file_or_version_is_named(elsewhere: tuple[Store, Version], here: Store) -> None:
    other, version = elsewhere
    with pytest.raises(NotFound, match="tidy/current"):
        fetch(str(other.root), here, "tidy")
    with pytest.raises(NotFound, match="not the name of a version"):
        fetch(str(other.root), here, "tiny", "../../etc")
    version.file(version.manifest.tokenizer).unlink()
    with pytest.raises(NotFound, match=r"tokenizer\.json: not there"):
        fetch(str(other.root), here, "tiny")


def test_a_scheme_without_its_client_is_an_error_with_a_remedy(here: Store) -> None:
    with pytest.raises(StoreError, match="install the client of its scheme"):
        fetch("gopher://models", here, "tiny")


def test_adopting_files_that_contradict_the_name_is_corrupt(elsewhere: tuple[Store, Version], here: Store) -> None:
    with pytest.raises(Corrupt):
        here.adopt("tiny", elsewhere[1].name, lambda folder: None)


def test_a_version_that_was_mixed_up_with_another_familys_is_refused(
    elsewhere: tuple[Store, Version], here: Store
) -> None:
    other, _ = elsewhere
    (other.root / "tiny").rename(other.root / "other")
    with pytest.raises(Corrupt, match="is one of the family 'tiny'"):
        fetch(str(other.root), here, "other")
    assert here.versions("other") == []


def test_files_come_a_little_at_a_time(
    elsewhere: tuple[Store, Version], here: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.remote, "PIECE_BYTES", 100)
    assert fetch(str(elsewhere[0].root), here, "tiny").name == elsewhere[1].name


def test_a_password_in_the_url_stands_in_no_message(here: Store) -> None:
    with pytest.raises(StoreError) as refused:
        fetch("http://me:secret@127.0.0.1:9/store", here, "tiny")
    assert "secret" not in str(refused.value)
    assert "http://127.0.0.1:9/store/tiny/current" in str(refused.value)
