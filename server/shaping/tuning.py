"""The file through which settings change while the server runs, its audit log, and the way back.

`jouleserve tune KEY=VALUE` and the admin endpoint write `<run_dir>/tuning.json`; the supervisor watches it and hands
each new, valid content to the replicas. An operator may edit the file by hand too: a content that does not validate is
refused as a whole, logged, and what was in force stays. Every version goes to the audit log beside the file, and can be
gone back to until the server stops; a start begins with what the settings say.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.store import write_atomic
from server.config_problems import SettingsError
from server.shaping import audit
from server.shaping.audit import Entry, Via
from server.shaping.tunables import Check, Tunables

LOCK_WAIT_S, ADOPT_WAIT_S = 10.0, 0.1
LOCK_LOOK_S = 0.02


def save(path: Path, tunables: Tunables) -> None:
    """Write the file atomically."""
    write_atomic(path, json.dumps(tunables.to_user_config(), indent=1).encode() + b"\n")


def load(path: Path) -> Tunables:
    """Read the file. Raises SettingsError if it is missing, no JSON, or says what is not allowed."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SettingsError([f"{path}: does not exist; start the server first, it writes the file"]) from None
    except (OSError, ValueError) as error:
        raise SettingsError([f"{path}: not readable as JSON ({error}); mend it or run `jouleserve tune`"]) from None
    if not isinstance(content, dict):
        raise SettingsError([f"{path}: holds no mapping; mend it or run `jouleserve tune`"])
    return Tunables.from_user_config(content)


@dataclass(frozen=True)
class Author:
    """Who changes settings, and how they came in."""

    who: str
    via: Via


class VersionConflict(Exception):
    """Somebody changed the settings since the caller looked."""


def audit_path(path: Path) -> Path:
    """The audit log beside a tuning file."""
    return path.with_name("tuning-audit.jsonl")


def begin(path: Path, tunables: Tunables) -> None:
    """Write the file for a server that starts, whatever an earlier one left there."""
    with _locked(path, LOCK_WAIT_S):
        log_path = audit_path(path)
        audit.make_room(log_path)
        known = audit.read(log_path)
        before = known[-1].settings if known else tunables.to_user_config()
        _record(path, before, tunables, Author(_owner(os.geteuid()), "start"))
        save(path, tunables)


def tune(
    path: Path,
    changes: Mapping[str, Any],
    check: Check | None = None,
    author: Author | None = None,
    expected_version: int | None = None,
) -> Tunables:
    """Apply `changes` to the file and return what it now says; callers at once lose no change.

    Raises SettingsError and leaves the file alone if anything is wrong, VersionConflict if the file's version is not
    the expected one, OSError if the disk refuses it or another change does not end.
    """
    with _locked(path, LOCK_WAIT_S):
        current = load(path)
        if expected_version is not None and current.version != expected_version:
            raise VersionConflict(f"expected_version: {expected_version}, but it is {current.version}; look again")
        return _take(path, current, current.apply(changes), check, author or command_line())


def undo(path: Path, check: Check | None = None, author: Author | None = None, to: int | None = None) -> Tunables:
    """Go back to the settings before the last change, or to version `to`; that is a new version, too.

    Going back again goes further back. Raises SettingsError if there is no such version since the server started, or if
    it does not fit any more.
    """
    with _locked(path, LOCK_WAIT_S):
        current = load(path)
        entries = audit.since_start(audit.read(audit_path(path)))
        known = {entry.version: entry for entry in entries if entry.version <= current.version}
        wanted = _before(known, current.version) if to is None else to
        entry = None if wanted is None else known.get(wanted)
        if entry is None:
            there = ", ".join(map(str, known)) or "none"
            raise SettingsError([f"version: there is nothing to go back to; versions since the start: {there}"])
        restored = Tunables.from_user_config({**entry.settings, "version": current.version + 1})
        origin = entry.version if entry.restored is None else entry.restored
        return _take(path, current, restored, check, author or command_line(), origin)


def _before(known: Mapping[int, Entry], version: int) -> int | None:
    """The version before the one whose settings are in force."""
    entry = known.get(version)
    if entry is None:
        return None
    origin = version if entry.restored is None else entry.restored
    return max((one for one in known if one < origin), default=None)


def command_line() -> Author:
    """The user of the machine who runs a command."""
    return Author(_owner(os.getuid()), "cli")


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _take(
    path: Path, current: Tunables, wanted: Tunables, check: Check | None, author: Author, restored: int | None = None
) -> Tunables:
    if check is not None:
        check(wanted)
    _record(path, current.to_user_config(), wanted, author, restored)
    save(path, wanted)
    return wanted


def _record(
    path: Path, before: Mapping[str, Any], wanted: Tunables, author: Author, restored: int | None = None
) -> None:
    after = wanted.to_user_config()
    changes = audit.differences(before, after)
    entry = Entry(wanted.version, audit.utc_text(), author.who, author.via, changes, after, restored)
    audit.append(audit_path(path), entry)


@contextlib.contextmanager
def _locked(path: Path, wait_s: float) -> Iterator[None]:
    """Alone with the file and its log. Raises OSError, TimeoutError if another is so for long (it may be stopped)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + wait_s
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    why = "another change is being made and does not end"
                    raise TimeoutError(errno.ETIMEDOUT, why, lock.name) from None
                time.sleep(LOCK_LOOK_S)
        yield


def adopt(path: Path, current: Tunables) -> Tunables:
    """What the file says now. A content that came in past `tune` is an edit by hand: it gets a version and an entry.
    For the event loop: waits for nobody for long. Raises SettingsError or OSError."""
    with _locked(path, ADOPT_WAIT_S):
        found = load(path)
        entries = audit.since_start(audit.read(audit_path(path)))
        newest = entries[-1] if entries else None
        if newest is not None and newest.settings == found.to_user_config():
            return found
        version = max(found.version, current.version + 1, 0 if newest is None else newest.version + 1)
        adopted = found.model_copy(update={"version": version})
        _record(path, current.to_user_config(), adopted, Author(_owner(path.stat().st_uid), "file"))
        save(path, adopted)
        return adopted
