"""The settings that change while the server runs. Pure values: nothing is read or written here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from pydantic import Field, ValidationError

from server.config import nested
from server.config_problems import SettingsError, leaves, problems_of, unknown_key
from server.section import Section
from server.settings import BatchingBounds, CacheBounds, Settings
from server.shaping_settings import THRESHOLDS, ShapingSettings

Check = Callable[["Tunables"], None]
"""Raises SettingsError for values that the served family does not allow."""


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
