"""What passes leave behind: a folder, what is known of it, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Spent:
    """What making an artifact cost; joules are None where unmeasured, even in part, and `unmeasured` says why."""

    cpu_seconds: float = 0.0
    joules: float | None = None
    unmeasured: str | None = None

    def __add__(self, other: Spent) -> Spent:
        both = None if self.joules is None or other.joules is None else self.joules + other.joules
        return Spent(self.cpu_seconds + other.cpu_seconds, both, self.unmeasured or other.unmeasured)


@dataclass(frozen=True)
class Artifact:
    """What a pass made: a folder, the key it is cached under, and what is known about it."""

    pass_name: str
    label: str
    key: str
    path: Path
    meta: Mapping[str, Any] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)
