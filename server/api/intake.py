"""What all connections of a process may hold together: each may hold little, and all of them still too much."""

from __future__ import annotations

import resource

MAX_CONNECTIONS = 4096
MAX_HELD_BYTES = 64 << 20


class Intake:
    """Counts the bytes of requests that come in pieces or wait behind others, until they are answered."""

    def __init__(self, max_body_bytes: int) -> None:
        """Two bodies of `max_body_bytes` always fit."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.max_connections = min(MAX_CONNECTIONS, files * 3 // 4) if files > 0 else MAX_CONNECTIONS
        self.max_bytes = max(MAX_HELD_BYTES, 2 * max_body_bytes)
        self.held_bytes = 0

    def take(self, more_bytes: int) -> bool:
        """Whether there is room for so many bytes more; they are counted then, until `give`."""
        if self.held_bytes + more_bytes > self.max_bytes:
            return False
        self.held_bytes += more_bytes
        return True

    def give(self, held_bytes: int) -> None:
        """So many bytes are no longer held."""
        self.held_bytes -= held_bytes
