"""The model store: immutable versions of families in a local folder, published atomically, verified by digest.

Layout: `<root>/<family>/<version>/{manifest.json, files…}` and `<root>/<family>/current`, a text file that names the
version in force. A version is called `<NNNN>-<first 12 hex digits of the manifest's SHA-256>`, so a changed byte in
the manifest contradicts its own folder's name, and the manifest's digests cover every other file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from models.manifest import FileRef, Manifest

_VERSION = re.compile(r"^(\d{4,})-([0-9a-f]{12})$")
_UNFINISHED = (".publishing-", ".pruned-")
_WAIT_SECONDS = 60.0


class StoreError(Exception):
    """A store operation failed; the message names the path and the remedy."""


class NotFound(StoreError):
    """No such family or version."""


class Corrupt(StoreError):
    """Bytes on disk contradict their digest; the version must not be loaded."""


@dataclass(frozen=True)
class Version:
    """A verified, readable version: its manifest and the folder that holds its files."""

    family: str
    name: str
    path: Path
    manifest: Manifest

    def file(self, ref: FileRef) -> Path:
        """Absolute path of one of the version's files."""
        return self.path / ref.path


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def file_ref(root: Path, relative: str) -> FileRef:
    """Describe the file `root/relative` as it is on disk now."""
    path = root / relative
    return FileRef(path=relative, sha256=sha256_file(path), size_bytes=path.stat().st_size)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a reader sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sync(*paths: Path) -> None:
    """Have the disk hold these files and folders: a machine that loses power right after publishing must not come back
    with a version in force whose files are empty."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a family's folder against other writers; a process that dies lets go. StoreError after a minute."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    deadline = time.monotonic() + _WAIT_SECONDS
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreError(f"{folder}: another process has been writing for a minute; try later") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def _remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left in a family's folder; only for who holds it, nobody else is at it then."""
    for left in folder.iterdir():
        if left.name.startswith(_UNFINISHED):
            shutil.rmtree(left)


def _remove(version: Path) -> None:
    """Delete a version, out of sight first: one that is deleted halfway must not look like a corrupt one."""
    hidden = version.with_name(f".pruned-{version.name}")
    version.rename(hidden)
    shutil.rmtree(hidden)


class Store:
    """A folder of published families."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def families(self) -> list[str]:
        """Names of the families that have at least one version."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and self.versions(p.name))

    def versions(self, family: str) -> list[str]:
        """Version names, oldest first."""
        folder = self.root / family
        if not folder.is_dir():
            return []
        found = [(int(m[1]), p.name) for p in folder.iterdir() if (m := _VERSION.match(p.name))]
        return [name for _, name in sorted(found)]

    def current(self, family: str) -> str:
        """The version in force. Raises NotFound if nothing is published, Corrupt if the pointer is no version name, or
        cannot be read."""
        pointer = self.root / family / "current"
        try:
            name = pointer.read_bytes().decode("ascii", "replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            others = self.families()
            there = f"there are {', '.join(others)}; use one of them or" if others else "nothing is published there;"
            raise NotFound(
                f"no family '{family}' in the store {self.root}: {there} compile one with"
                " `jouleserve-compile run RECIPE`"
            ) from None
        except OSError as error:
            raise Corrupt(f"{pointer}: cannot be read ({error.strerror}); mend the disk or its rights") from None
        if not _VERSION.match(name):
            raise Corrupt(f"{pointer}: names no version; write one of {self.versions(family)} into it")
        return name

    def open(self, family: str, version: str | None = None) -> Version:
        """Verify a version's every digest and return it.

        Raises NotFound if it is missing and Corrupt, naming the file, if any byte differs from what was published.
        """
        name = version or self.current(family)
        path = self.root / family / name
        if not _VERSION.match(name) or not path.is_dir():
            raise NotFound(f"{path}: no such version; there are {self.versions(family) or 'none'}")
        return self._verified(family, name, path)

    def _verified(self, family: str, name: str, path: Path) -> Version:
        """The version called `name` whose files are in `path`, if they are what its name and its manifest say."""
        try:
            return self._checked(family, name, path)
        except OSError as error:
            where = error.filename or path
            raise Corrupt(f"{where}: cannot be read ({error.strerror}); mend the disk or its rights") from None

    def _checked(self, family: str, name: str, path: Path) -> Version:
        try:
            raw = (path / "manifest.json").read_bytes()
        except FileNotFoundError:
            raise Corrupt(f"{path / 'manifest.json'}: missing; publish the version again") from None
        if hashlib.sha256(raw).hexdigest()[:12] != name.partition("-")[2]:
            raise Corrupt(f"{path / 'manifest.json'}: its digest is not the one in the version's name")
        try:
            manifest = Manifest.model_validate_json(raw)
        except ValidationError as error:
            raise Corrupt(f"{path / 'manifest.json'}: not a manifest this release reads: {error}") from error
        if manifest.family != family:
            raise Corrupt(
                f"{path / 'manifest.json'}: is one of the family '{manifest.family}'; publish it under its name"
            )
        for ref in manifest.files():
            self._verify(path / ref.path, ref)
        return Version(family, name, path, manifest)

    def open_newest_sound(self, family: str, version: str | None = None) -> tuple[Version, list[str]]:
        """The given (or current) version or, where its bytes fail verification, the newest older one that is sound.

        Returns it with one message for each version refused. Raises NotFound if the version does not exist and Corrupt
        if none is sound.
        """
        names = self.versions(family)
        wanted = version or self.current(family)
        if wanted not in names:
            raise NotFound(f"{self.root / family / wanted}: no such version; there are {names or 'none'}")
        refused: list[str] = []
        for name in reversed(names[: names.index(wanted) + 1]):
            try:
                return self.open(family, name), refused
            except Corrupt as error:
                refused.append(str(error))
        raise Corrupt(f"no sound version of '{family}' is left: {'; '.join(refused)}")

    def publish(self, manifest: Manifest, files: Path) -> Version:
        """Copy the manifest's files out of folder `files` into a new version and make it current.

        The version appears whole or not at all: it is built beside its place and renamed. What is published already
        and sound is not copied again. Raises Corrupt if a file does not match the manifest's digest; a failure leaves
        the store as it was.
        """
        folder = self.root / manifest.family
        missing = [path for path in (folder, self.root) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with _one_at_a_time(folder):
                return self._publish(manifest, files, folder)
        except BaseException:
            with contextlib.suppress(OSError):
                for path in missing:
                    path.rmdir()
            raise

    def adopt(self, family: str, name: str, fill: Callable[[Path], None]) -> Version:
        """Take over a version that was published elsewhere, under its own name, and make it current.

        `fill` writes its files into an empty folder. It appears whole and verified or not at all; one that is here and
        sound is not filled again, one that went corrupt stays until it can be replaced. Raises NotFound if `name` is no
        version's name, Corrupt if the files contradict it, and what `fill` raises.
        """
        if not _VERSION.match(name):
            raise NotFound(f"{name}: not the name of a version")
        folder = self.root / family
        folder.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder):
            _remove_unfinished(folder)
            try:
                version = self.open(family, name)
            except (NotFound, Corrupt):
                self._take_over(family, name, folder, fill)
                version = self.open(family, name)
            self.set_current(family, name)
            return version

    def _take_over(self, family: str, name: str, folder: Path, fill: Callable[[Path], None]) -> None:
        staging = Path(tempfile.mkdtemp(dir=folder, prefix=".publishing-"))
        try:
            fill(staging)
            self._verified(family, name, staging)
            staging.chmod(0o755)
            _sync(*staging.rglob("*"), staging)
            with contextlib.suppress(FileNotFoundError):
                _remove(folder / name)
            staging.rename(folder / name)
            _sync(folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def _publish(self, manifest: Manifest, files: Path, folder: Path) -> Version:
        _remove_unfinished(folder)
        raw = manifest.model_dump_json(indent=1).encode()
        digest = hashlib.sha256(raw).hexdigest()[:12]
        for existing in self.versions(manifest.family):
            if existing.endswith(digest):
                with contextlib.suppress(Corrupt):
                    version = self.open(manifest.family, existing)
                    self.set_current(manifest.family, existing)
                    return version
        numbers = [int(v.split("-")[0]) for v in self.versions(manifest.family)]
        name = f"{max(numbers, default=0) + 1:04d}-{digest}"
        staging = Path(tempfile.mkdtemp(dir=folder, prefix=".publishing-"))
        try:
            for ref in manifest.files():
                target = staging / ref.path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(files / ref.path, target)
                self._verify(target, ref)
            write_atomic(staging / "manifest.json", raw)
            staging.chmod(0o755)
            _sync(*staging.rglob("*"), staging)
            staging.rename(folder / name)
            _sync(folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        self.set_current(manifest.family, name)
        return Version(manifest.family, name, folder / name, manifest)

    def set_current(self, family: str, version: str) -> None:
        """Point the family at `version` (publishing and rolling back are the same step)."""
        if version not in self.versions(family):
            raise NotFound(f"{self.root / family / version}: no such version; there are {self.versions(family)}")
        write_atomic(self.root / family / "current", f"{version}\n".encode())

    def prune(self, family: str, keep: int = 3) -> list[str]:
        """Delete all but the newest `keep` versions and the current one; returns what went."""
        if len(self.versions(family)) <= keep:
            return []
        with _one_at_a_time(self.root / family):
            # Looked at within the lock: while this waited for it, another version may have been put in force.
            names, current = self.versions(family), self.current(family)
            gone = [n for n in names[: max(0, len(names) - keep)] if n != current]
            for name in gone:
                _remove(self.root / family / name)
        return gone

    @staticmethod
    def _verify(path: Path, ref: FileRef) -> None:
        if not path.is_file():
            raise Corrupt(f"{path}: missing; the manifest names it")
        if path.stat().st_size != ref.size_bytes or sha256_file(path) != ref.sha256:
            raise Corrupt(f"{path}: its bytes differ from the manifest's digest; publish it again")
