"""Versions appear whole or not at all, and a changed byte is never served."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models.store
from models.manifest import Manifest
from models.store import Corrupt, NotFound, Store, StoreError, Version, file_ref, sha256_file, write_atomic
from tests.support.tiny_family import publish_tiny_family

FILES = ("manifest.json", "tokenizer.json", "full.onnx", "lite.onnx", "nano.onnx")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def flip(path: Path, position: int = 0, mask: int = 1) -> None:
    """Change a byte without changing the size."""
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= mask
    path.write_bytes(bytes(data))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_published_is_current_and_opens_as_it_was(store: Store) -> None:
    published = publish_tiny_family(store)
    opened = store.open("tiny")
    assert opened == published
    assert store.families() == ["tiny"]
    assert sorted(content(opened.path)) == sorted(FILES)


def test_versions_count_up_and_the_newest_is_current(store: Store) -> None:
    names = [publish_tiny_family(store, scale=scale).name for scale in (1, 2, 3)]
    assert [name[:5] for name in names] == ["0001-", "0002-", "0003-"]
    assert store.versions("tiny") == names
    assert store.current("tiny") == names[-1]


def test_publishing_the_same_again_adds_nothing_and_makes_it_current(store: Store) -> None:
    first = publish_tiny_family(store)
    publish_tiny_family(store, scale=2)
    assert publish_tiny_family(store).name == first.name
    assert store.current("tiny") == first.name
    assert len(store.versions("tiny")) == 2


def test_publishing_again_mends_a_version_that_went_corrupt(store: Store) -> None:
    broken = publish_tiny_family(store)
    flip(broken.path / "full.onnx")
    mended = publish_tiny_family(store)
    assert mended.name != broken.name
    assert store.open("tiny").name == mended.name


def test_rolling_back_makes_an_older_version_current(store: Store) -> None:
    first = publish_tiny_family(store)
    publish_tiny_family(store, scale=2)
    store.set_current("tiny", first.name)
    assert store.open("tiny").name == first.name


def test_only_a_version_that_exists_can_be_made_current(store: Store) -> None:
    version = publish_tiny_family(store)
    with pytest.raises(NotFound, match="0009-0123456789ab"):
        store.set_current("tiny", "0009-0123456789ab")
    assert store.current("tiny") == version.name


def test_a_file_that_is_not_what_the_manifest_says_is_not_published(store: Store, tiny_version: Version) -> None:
    folder = store.root.parent / "files"
    shutil.copytree(tiny_version.path, folder)
    flip(folder / "lite.onnx")
    manifest = tiny_version.manifest.model_copy(update={"family": "other"})
    with pytest.raises(Corrupt, match=r"lite\.onnx"):
        store.publish(manifest, folder)
    assert store.versions("other") == []
    assert content(store.root / "other") == {}
    with pytest.raises(NotFound):
        store.current("other")


def test_a_crash_while_publishing_leaves_the_version_before_in_force(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = publish_tiny_family(store)

    class Crash(BaseException):
        pass

    def crash(self: Path, target: Path) -> Path:
        raise Crash

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(Crash):
        publish_tiny_family(store, scale=2)
    assert store.versions("tiny") == [before.name]
    assert store.open("tiny") == before
    assert not list(store.root.glob("tiny/.*"))


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused_and_its_file_named(store: Store, name: str) -> None:
    version = publish_tiny_family(store)
    flip(version.path / name, 20)
    with pytest.raises(Corrupt, match=name.replace(".", r"\.")):
        store.open("tiny")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_and_named(store: Store, name: str) -> None:
    version = publish_tiny_family(store)
    (version.path / name).unlink()
    with pytest.raises(Corrupt, match=rf"{name}.*missing"):
        store.open("tiny")


@pytest.mark.parametrize("garbage", [b"", b"\xff\xfe\n", b"../elsewhere\n", b"0001\n"])
def test_a_pointer_that_names_no_version_is_called_corrupt(store: Store, garbage: bytes) -> None:
    publish_tiny_family(store)
    (store.root / "tiny" / "current").write_bytes(garbage)
    with pytest.raises(Corrupt, match="current: names no version; write one of"):
        store.open("tiny")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Version]:
    store = Store(tmp_path_factory.mktemp("shared"))
    return store, publish_tiny_family(store)


@settings(max_examples=150)
@given(st.sampled_from(FILES), st.integers(0, 1 << 20), st.integers(1, 255))
def test_whatever_byte_changes_the_version_is_refused(
    shared: tuple[Store, Version], name: str, position: int, mask: int
) -> None:
    store, version = shared
    flip(version.path / name, position, mask)
    try:
        with pytest.raises(Corrupt, match=name):
            store.open("tiny")
    finally:
        flip(version.path / name, position, mask)


@settings(max_examples=150)
@given(st.integers(0, 100), st.integers(1, 255))
def test_a_changed_pointer_leads_to_the_right_version_or_to_an_error(
    shared: tuple[Store, Version], position: int, mask: int
) -> None:
    store, version = shared
    pointer = store.root / "tiny" / "current"
    flip(pointer, position, mask)
    try:
        found = store.open_newest_sound("tiny")[0].name
    except StoreError as error:
        found = str(error)
    finally:
        flip(pointer, position, mask)
    assert found == version.name or str(store.root) in found


def test_the_newest_sound_version_takes_the_place_of_a_corrupt_one(store: Store) -> None:
    versions = [publish_tiny_family(store, scale=scale) for scale in (1, 2, 3)]
    flip(versions[2].path / "full.onnx")
    flip(versions[1].path / "manifest.json")
    found, refused = store.open_newest_sound("tiny")
    assert found == versions[0]
    assert ["full.onnx" in refused[0], "manifest.json" in refused[1]] == [True, True]


def test_a_newer_version_than_the_one_in_force_is_not_taken_for_it(store: Store) -> None:
    first, _ = publish_tiny_family(store), publish_tiny_family(store, scale=2)
    store.set_current("tiny", first.name)
    assert store.open_newest_sound("tiny") == (first, [])


def test_the_search_for_a_sound_version_can_start_at_any(store: Store) -> None:
    first, second, _ = (publish_tiny_family(store, scale=scale) for scale in (1, 2, 3))
    flip(second.path / "nano.onnx")
    found, refused = store.open_newest_sound("tiny", second.name)
    assert (found, len(refused)) == (first, 1)


def test_without_a_sound_version_everything_that_is_wrong_is_said(store: Store) -> None:
    for scale in (1, 2):
        flip(publish_tiny_family(store, scale=scale).path / "lite.onnx")
    with pytest.raises(Corrupt, match=r"0002-.*0001-"):
        store.open_newest_sound("tiny")


def test_a_manifest_of_another_release_is_refused_as_such(store: Store) -> None:
    version = publish_tiny_family(store)
    raw = version.manifest.model_dump_json().replace('"schema_version":1', '"schema_version":2').encode()
    (version.path / "manifest.json").write_bytes(raw)
    renamed = version.path.with_name(f"0002-{hashlib.sha256(raw).hexdigest()[:12]}")
    version.path.rename(renamed)
    with pytest.raises(Corrupt, match="not a manifest this release reads"):
        store.open("tiny", renamed.name)


@pytest.mark.parametrize("name", ["0001-000000000000", "../tiny", "current", ""])
def test_an_unknown_version_is_not_found(store: Store, name: str) -> None:
    publish_tiny_family(store)
    with pytest.raises(NotFound):
        store.open("tiny", name or "none")


def test_an_empty_store_says_how_to_fill_it(store: Store) -> None:
    assert store.families() == []
    with pytest.raises(NotFound, match="jouleserve-compile run"):
        store.open("tiny")


def test_pruning_keeps_the_newest_and_the_current_version(store: Store) -> None:
    names = [publish_tiny_family(store, scale=scale).name for scale in range(1, 6)]
    store.set_current("tiny", names[0])
    assert store.prune("tiny", keep=2) == names[1:3]
    assert store.versions("tiny") == [names[0], *names[3:]]
    assert store.open("tiny").name == names[0]
    assert not list(store.root.glob("tiny/.*"))


def test_pruning_a_small_store_takes_nothing(store: Store) -> None:
    publish_tiny_family(store)
    assert store.prune("tiny", keep=3) == []


def test_a_write_replaces_the_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"a long first content")
    write_atomic(path, b"short")
    assert path.read_bytes() == b"short"
    assert [one.name for one in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_content_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("adopted", [False, True])
def test_a_version_is_on_the_disk_before_it_is_put_in_force(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adopted: bool
) -> None:
    elsewhere = publish_tiny_family(Store(tmp_path / "elsewhere"))
    synced: list[str] = []
    in_force: list[set[str]] = []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name))
    set_current = store.set_current
    monkeypatch.setattr(store, "set_current", lambda *names: (in_force.append({*synced}), set_current(*names)))
    if adopted:
        store.adopt("tiny", elsewhere.name, lambda to: shutil.copytree(elsewhere.path, to, dirs_exist_ok=True) and None)
    else:
        publish_tiny_family(store)
    assert {*FILES, "tiny"} <= in_force[0]


def test_a_file_is_described_by_its_digest_and_size(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    ref = file_ref(tmp_path, "f")
    assert (ref.path, ref.size_bytes) == ("f", 3)
    assert ref.sha256 == sha256_file(tmp_path / "f")
    assert ref.sha256.startswith("ba7816bf8f01cfea")  # FIPS 180-4, example "abc"


def test_the_stored_manifest_is_what_was_published(store: Store) -> None:
    version = publish_tiny_family(store)
    assert Manifest.model_validate_json((version.path / "manifest.json").read_bytes()) == version.manifest


def test_what_a_killed_publisher_left_goes_at_the_next_publish(store: Store) -> None:
    publish_tiny_family(store)
    for name in (".publishing-abc", ".pruned-0001-abcdefabcdef"):
        (store.root / "tiny" / name).mkdir()
        (store.root / "tiny" / name / "half.onnx").write_bytes(b"half")
    newest = publish_tiny_family(store, scale=2)
    left = {path.name for path in (store.root / "tiny").iterdir()}
    assert left == {*store.versions("tiny"), "current"}
    assert store.open("tiny") == newest


def test_a_publisher_at_work_is_waited_for(store: Store) -> None:
    publish_tiny_family(store)
    folder = store.root / "tiny"
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    (folder / ".publishing-alive").mkdir()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(publish_tiny_family, store, scale=2)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.3)
        assert (folder / ".publishing-alive").is_dir()
        os.close(held)
        assert second.result(timeout=30).name.startswith("0002-")


def test_a_publication_that_fails_leaves_no_empty_store_behind(store: Store, tmp_path: Path) -> None:
    made = publish_tiny_family(Store(tmp_path / "other"))
    with pytest.raises(FileNotFoundError):
        store.publish(made.manifest, tmp_path / "nowhere")
    assert not store.root.exists()


def test_a_version_of_another_family_is_not_taken_for_one_of_this(store: Store) -> None:
    version = publish_tiny_family(store)
    shutil.copytree(store.root / "tiny", store.root / "other")
    with pytest.raises(Corrupt, match="is one of the family 'tiny'"):
        store.open("other", version.name)


def test_what_the_disk_cannot_read_is_refused_and_the_version_before_serves(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = publish_tiny_family(store), publish_tiny_family(store, scale=2.0)
    digest = models.store.sha256_file

    def failing(path: Path) -> str:
        if second.name in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return digest(path)

    monkeypatch.setattr(models.store, "sha256_file", failing)
    found, refused = store.open_newest_sound("tiny")
    assert found.name == first.name
    assert "cannot be read (Input/output error)" in refused[0]
