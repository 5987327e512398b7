"""Which side of a divided dial a request falls on: the same one for the same session, as long as the dial stands.

A session is any bytes; the engine takes a request's first text, so that an equal text is answered by the same point.
While the dial moves, each session changes sides once: those of the lowest fractions first, back in reverse order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Split:
    """`share` (0 to 1, both excluded) of the sessions are answered by the cheaper `point`, the others by the better."""

    point: str
    share: float

    def takes(self, session: bytes) -> bool:
        """Whether `session` (any bytes that stay the same for it) is on the cheaper side."""
        return fraction(session) < self.share

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable."""
        return {"point": self.point, "share": self.share}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """The inverse. Raises ValueError naming what is wrong."""
        if not isinstance(data, dict) or not isinstance(data.get("point"), str):
            raise ValueError("dial.split: must name a point and a share")
        share = data.get("share")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise ValueError("dial.split.share: must lie between 0 and 1")
        return cls(data["point"], float(share))


def fraction(session: bytes) -> float:
    """A number in [0, 1), evenly spread over sessions and equal in every process."""
    return int.from_bytes(hashlib.blake2b(session, digest_size=6).digest(), "big") / (1 << 48)
