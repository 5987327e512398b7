"""What every replica is told: tunable settings, the dial, and the version of the family to serve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.store import write_atomic
from server.shaping.policy import DialState
from server.shaping.tunables import Tunables


@dataclass(frozen=True)
class Orders:
    """What the supervisor wants of every replica: serializable, and complete in itself."""

    tunables: Tunables
    dial: DialState
    version: str

    def to_user_config(self) -> dict[str, Any]:
        """A plain dict for Ray Serve's `user_config`."""
        return {
            "tunables": self.tunables.to_user_config(),
            "dial": self.dial.to_dict(),
            "version": self.version,
        }

    def after(self, held: Orders) -> Orders:
        """These orders, save for what `held` says in a newer version. A dial goes with the version it was made for."""
        tunables = self.tunables if self.tunables.version >= held.tunables.version else held.tunables
        newer = self if self.dial.version >= held.dial.version else held
        return Orders(tunables, newer.dial, newer.version)

    @classmethod
    def from_user_config(cls, config: Mapping[str, Any]) -> Orders:
        """The inverse. Raises SettingsError, ValueError or KeyError on a config that the supervisor did not make."""
        return cls(
            Tunables.from_user_config(config["tunables"]),
            DialState.from_dict(config["dial"]),
            config["version"],
        )

    def save(self, path: Path) -> None:
        """Write them atomically, for replicas that start later."""
        write_atomic(path, json.dumps(self.to_user_config()).encode())

    @classmethod
    def load(cls, path: Path) -> Orders:
        """Read what `save` wrote. Raises OSError, SettingsError, ValueError or KeyError if it cannot be used."""
        return cls.from_user_config(json.loads(path.read_bytes()))
