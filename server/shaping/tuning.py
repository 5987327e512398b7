"""The settings that change while the server runs, and the watched file through which they do.

`jouleserve tune KEY=VALUE` writes `<run_dir>/tuning.json`; the supervisor watches it and hands each new,
valid content to the replicas as Serve's `user_config`. An operator may edit the file by hand too: a content
that does not validate is refused as a whole, logged, and what was in force stays.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import structlog
from pydantic import Field, ValidationError

from models.store import write_atomic
from server.config import nested
from server.config_problems import SettingsError, leaves, problems_of, unknown_key
from server.settings import THRESHOLDS, BatchingBounds, CacheBounds, Section, Settings, ShapingSettings

log = structlog.get_logger(__name__)

Check = Callable[["Tunables"], None]


class _Tunable(Section):
    batching: BatchingBounds = BatchingBounds()
    """Bounds of the batcher."""
    cache: CacheBounds = CacheBounds()
    """Bounds of the reply cache."""
    shaping: ShapingSettings = ShapingSettings()
    """Policy, thresholds, dwell, floors."""


class Tunables(_Tunable):
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


def tune(path: Path, changes: Mapping[str, Any], check: Check | None = None) -> Tunables:
    """Apply `changes` to the file and return what it now says; callers at once lose no change.

    Raises SettingsError and leaves the file alone if anything is wrong.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tuned = load(path).apply(changes)
        if check is not None:
            check(tuned)
        save(path, tuned)
        return tuned


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
        version = max(found.version, self.current.version + 1)
        self.current = found.model_copy(update={"version": version})
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
    tunable = {key for key, _ in leaves(_Tunable)}
    fixed = {key for key, _ in leaves(Settings)} - tunable
    problems = []
    for key in changes:
        if key in fixed:
            problems.append(f"{key}: cannot change while running; edit the settings file and restart")
        elif any(name.startswith(f"{key}.") for name in tunable | fixed):
            problems.append(f"{key}: is a group of settings; name a field below it")
        elif key not in tunable:
            problems.append(unknown_key(key, _Tunable))
    if problems:
        raise SettingsError(problems)


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **base,
        **{
            name: _merged(base[name], value) if isinstance(value, Mapping) else value for name, value in changes.items()
        },
    }
