"""The settings that change while the server runs, and the watched file through which they do.

`jouleserve tune KEY=VALUE` and the admin endpoint write `<run_dir>/tuning.json`; the supervisor watches it and hands
each new, valid content to the replicas. An operator may edit the file by hand too: a content that does not validate is
refused as a whole, logged, and what was in force stays. Every version goes to the audit log beside the file, and can be
gone back to until the server stops; a start begins with what the settings say.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pwd
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import structlog
from pydantic import Field, ValidationError

from models.store import write_atomic
from server.config import nested
from server.config_problems import SettingsError, leaves, problems_of, unknown_key
from server.section import Section
from server.settings import THRESHOLDS, BatchingBounds, CacheBounds, Settings, ShapingSettings
from server.shaping import audit
from server.shaping.audit import Entry, Via

log = structlog.get_logger(__name__)

Check = Callable[["Tunables"], None]


class Tunable(Section):
    """The settings that can change while the server runs."""

    batching: BatchingBounds = BatchingBounds()
    """Bounds of the batcher."""
    cache: CacheBounds = CacheBounds()
    """Bounds of the reply cache."""
    shaping: ShapingSettings = ShapingSettings()
    """Policy, thresholds, dwell, floors."""


class Tunables(Tunable):
    """The settings that can change while the server runs, validated as a whole."""

    version: int = Field(default=0, ge=0)
    """Counts the changes since the server started; replicas ignore a version older than the one they hold."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What `settings` say of the tunable fields, as version 0."""
        whole = settings.model_dump()
        return cls.model_validate(
            {
                "batching": {name: whole["batching"][name] for name in BatchingBounds.model_fields},
                "cache": {name: whole["cache"][name] for name in CacheBounds.model_fields},
                "shaping": whole["shaping"],
            }
        )

    @classmethod
    def from_user_config(cls, config: Mapping[str, Any]) -> Self:
        """The inverse of `to_user_config`. Raises SettingsError, naming every field that is wrong."""
        try:
            return cls.model_validate(dict(config))
        except ValidationError as error:
            raise SettingsError(problems_of(error, cls, {})) from None

    def to_user_config(self) -> dict[str, Any]:
        """A plain JSON-serializable dict, for Serve's `user_config` and for the file."""
        return self.model_dump(mode="json")

    def apply(self, changes: Mapping[str, Any]) -> Self:
        """A new version with `changes` (dotted keys, values typed or as text), validated as a whole.

        Nothing is taken if any part is wrong: SettingsError lists every problem. A threshold changed under the default
        policy chooses `threshold`, as it does in the settings.
        """
        _refuse_untunable(changes)
        changed = nested(changes)
        merged = _merged(self.to_user_config(), changed)
        shaping = changed.get("shaping", {})
        default = ShapingSettings.model_fields["policy"].default
        if self.shaping.policy == default and THRESHOLDS & shaping.keys() and "policy" not in shaping:
            del merged["shaping"]["policy"]
        merged["version"] = self.version + 1
        return self.from_user_config(merged)

    def same_values(self, other: Tunables) -> bool:
        """Whether both say the same, whatever their versions."""
        return self.model_copy(update={"version": other.version}) == other


def check_points(points: Iterable[str]) -> Check:
    """A check that the operating points which the settings name are among `points`, those of the family."""
    known = tuple(points)

    def check(tunables: Tunables) -> None:
        named = {
            "shaping.pin_point": tunables.shaping.pin_point,
            "shaping.fallback_point": tunables.shaping.fallback_point,
        }
        problems = [
            f"{key}: the family has no operating point '{name}'; use one of {', '.join(known)}"
            for key, name in named.items()
            if name is not None and name not in known
        ]
        if problems:
            raise SettingsError(problems)

    return check


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
    with _locked(path):
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
    the expected one.
    """
    with _locked(path):
        current = load(path)
        if expected_version is not None and current.version != expected_version:
            raise VersionConflict(f"expected_version: {expected_version}, but it is {current.version}; look again")
        return _take(path, current, current.apply(changes), check, author or command_line())


def undo(path: Path, check: Check | None = None, author: Author | None = None, to: int | None = None) -> Tunables:
    """Go back to the settings before the last change, or to version `to`; that is a new version, too.

    Going back again goes further back. Raises SettingsError if there is no such version since the server started, or if
    it does not fit any more.
    """
    with _locked(path):
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
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _adopt(path: Path, current: Tunables) -> Tunables:
    """What the file says. A content that came in past `tune` is an edit by hand: it gets a version and an entry."""
    with _locked(path):
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


class TuningWatcher:
    """Notices changes of the file by a `stat` per period (idle cost: microseconds), and validates them."""

    def __init__(self, path: Path, current: Tunables, check: Check | None = None) -> None:
        self.path = path
        self.current = current
        self._check = check
        self._seen: tuple[int, int, int] | None = None

    def poll(self) -> Tunables | None:
        """The new tunables if the file changed and is valid, else None.

        An invalid content is logged once and `current` stays. A hand edit need not count the version up.
        """
        try:
            stat = self.path.stat()
        except OSError:
            self._seen = None
            return None
        signature = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if signature == self._seen:
            return None
        self._seen = signature
        try:
            found = load(self.path)
            if self._check is not None:
                self._check(found)
        except SettingsError as error:
            log.error("tuning_refused", path=str(self.path), problems=error.problems, kept=self.current.version)
            return None
        if found.same_values(self.current):
            return None
        try:
            found = _adopt(self.path, self.current)
        except (
            SettingsError,
            OSError,
        ) as error:  # it changed again meanwhile, or the disk is full: the next look tells
            log.warning("tuning_not_recorded", path=str(self.path), error=str(error))
            found = found.model_copy(update={"version": max(found.version, self.current.version + 1)})
        self.current = found
        return self.current

    async def watch(self, on_change: Callable[[Tunables], Awaitable[None]], period_s: float = 1.0) -> None:
        """Poll until cancelled and await `on_change` with every new valid content.

        A failing `on_change` is logged and tried again at the next period, so that no change is lost.
        """
        pending: Tunables | None = None
        while True:
            pending = self.poll() or pending
            if pending is not None:
                try:
                    await on_change(pending)
                except Exception:
                    log.exception("tuning_not_pushed", version=pending.version)
                else:
                    log.info("tuning_taken", version=pending.version)
                    pending = None
            await asyncio.sleep(period_s)


def _refuse_untunable(changes: Mapping[str, Any]) -> None:
    tunable = {key for key, _ in leaves(Tunable)}
    fixed = {key for key, _ in leaves(Settings)} - tunable
    problems = []
    for key in changes:
        if key in fixed:
            problems.append(f"{key}: cannot change while running; edit the settings file and restart")
        elif any(name.startswith(f"{key}.") for name in tunable | fixed):
            problems.append(f"{key}: is a group of settings; name a field below it")
        elif key not in tunable:
            problems.append(unknown_key(key, Tunable))
    if problems:
        raise SettingsError(problems)


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **base,
        **{
            name: _merged(base[name], value) if isinstance(value, Mapping) else value for name, value in changes.items()
        },
    }
