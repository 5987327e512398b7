"""What an administrator may do over the network: look at the settings in force and change them, as `jouleserve tune`.

The same file, lock, checks and audit log as on the command line, so that there is one truth. Knows no protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.manifest import OperatingPoint
from server.config_problems import leaves
from server.engine.errors import EngineError
from server.guard import Guard
from server.shaping import audit, tuning
from server.shaping.tunables import Check, Tunable, Tunables, check_points
from server.shaping.tuning import Author, audit_path

MAX_ENTRIES = 500


class AdminClosed(EngineError):
    """No file of administrators' keys is configured, so that nobody is let in."""


@dataclass(frozen=True)
class Admin:
    """The settings of the server that runs. Methods do file I/O and raise SettingsError, VersionConflict or OSError."""

    tuning_path: Path
    points: Callable[[], Sequence[OperatingPoint]]
    """The operating points in force."""
    guard: Guard | None
    """Who may; None: nobody."""

    def admit(self, authorization: bytes | None) -> str:
        """The name of the key. Raises Unauthenticated or AdminClosed."""
        if self.guard is None:
            raise AdminClosed("/admin is closed; set server.admin_keys_file to a file of administrators' keys")
        return self.guard.admit(authorization, 0)

    def show(self) -> dict[str, Any]:
        """The settings in force, and what can be set."""
        return self._told(tuning.load(self.tuning_path))

    def change(self, changes: Mapping[str, Any], who: str, expected_version: int | None) -> dict[str, Any]:
        """Apply `changes` (dotted keys)."""
        author = Author(who, "http")
        return self._told(tuning.tune(self.tuning_path, changes, self._check(), author, expected_version))

    def undo(self, who: str, to: int | None) -> dict[str, Any]:
        """Go back to the settings before the last change, or to version `to`."""
        return self._told(tuning.undo(self.tuning_path, self._check(), Author(who, "http"), to))

    def entries(self, limit: int) -> list[dict[str, Any]]:
        """The newest entries of the audit log, newest first."""
        newest = audit.read(audit_path(self.tuning_path))[-min(limit, MAX_ENTRIES) :]
        return [entry.to_dict() for entry in reversed(newest)]

    def _check(self) -> Check:
        return check_points(point.name for point in self.points())

    def _told(self, tunables: Tunables) -> dict[str, Any]:
        settings = tunables.to_user_config()
        version = settings.pop("version")
        return {
            "version": version,
            "settings": settings,
            "points": [point.name for point in self.points()],
            "fields": {
                key: {"description": " ".join((field.description or "").split()), "default": _plain(field.default)}
                for key, field in leaves(Tunable)
            },
        }


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)
