"""Brings a version from a store elsewhere (any fsspec URL: s3://, gs://, abfs://, http://, file://) into a local one.

The other store has the layout of `models.store`. What arrives is verified like everything else: by the manifest's
digests, and the manifest by the version's own name. That finds what was damaged or mixed up on the way. It is no
signature: the name holds 48 bits of the manifest's digest and, unless the caller gives it, comes over the same
transport. Who may write to the other store, or to what passes on the way, decides what is served: use one that
authenticates its server (https, s3, gs, abfs) and let few write there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.manifest import Manifest
from models.store import Corrupt, NotFound, Store, StoreError, Version
from models.urls import without_secrets

MAX_POINTER_BYTES = 256
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
PIECE_BYTES = 1024 * 1024


def fetch(url: str, store: Store, family: str, version: str | None = None) -> Version:
    """Bring `version` (None: the one in force there) into `store` and make it current there.

    What is in the store already, and sound, is not transferred again; what went corrupt there is replaced. Raises
    StoreError, naming the URL, if it cannot be read or the client for its scheme is not installed, NotFound and Corrupt
    as the store does.
    """
    remote = _Remote(url, family)
    name = version or remote.current()
    if name in store.versions(family):
        with contextlib.suppress(Corrupt):
            found = store.open(family, name)
            store.set_current(family, name)
            return found
    return store.adopt(family, name, lambda folder: remote.download(name, folder))


class _Remote:
    """One family of a store elsewhere."""

    def __init__(self, url: str, family: str) -> None:
        """`_url` is for messages."""
        self._url = f"{without_secrets(url).rstrip('/')}/{family}"
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise StoreError(f"{self._url}: needs fsspec; pip install '.[remote]'") from None
        try:
            self._files, self._root = url_to_fs(f"{url.rstrip('/')}/{family}")
        except (ImportError, ValueError) as error:
            raise StoreError(f"{self._url}: {error}; install the client of its scheme or correct the URL") from error

    def current(self) -> str:
        return self._read("current", MAX_POINTER_BYTES).decode("ascii", "replace").strip()

    def download(self, name: str, folder: Path) -> None:
        raw = self._read(f"{name}/manifest.json", MAX_MANIFEST_BYTES)
        (folder / "manifest.json").write_bytes(raw)
        try:
            manifest = Manifest.model_validate_json(raw)
        except ValueError as error:
            raise StoreError(f"{self._url}/{name}/manifest.json: not a manifest this release reads: {error}") from error
        for ref in manifest.files():
            target = folder / ref.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as output:
                for piece in self._pieces(f"{name}/{ref.path}", ref.size_bytes):
                    output.write(piece)

    def _read(self, path: str, most_bytes: int) -> bytes:
        return b"".join(self._pieces(path, most_bytes))

    def _pieces(self, path: str, most_bytes: int) -> Iterator[bytes]:
        """A file, a little at a time: a model need not fit in memory. Raises StoreError where it is longer."""
        left = most_bytes
        try:
            with self._files.open(f"{self._root}/{path}", "rb") as stream:
                while (piece := stream.read(min(left + 1, PIECE_BYTES))) and len(piece) <= left:
                    left -= len(piece)
                    yield piece
        except FileNotFoundError:
            raise NotFound(f"{self._url}/{path}: not there; publish to that store first") from None
        except Exception as error:  # every client has errors of its own
            raise StoreError(f"{self._url}/{path}: cannot be read: {_first_line(error)}") from error
        if piece:
            raise StoreError(f"{self._url}/{path}: more than {most_bytes} bytes; it is not what it should be")


def _first_line(error: Any) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
