"""Answers kept for a while, so that an equal question costs a lookup instead of a forward pass."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TTLCache

from server.engine.runtime import Float32Array

# What one entry occupies beside its scores: key, entry object, TTL links and dictionary slots (measured with
# tracemalloc on CPython 3.11; see tests/server/engine/test_cache.py).
ENTRY_OVERHEAD_BYTES = 700


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """Logits (float32, shape [labels]) and the operating point they came from (rank 0 is full
    quality), and the CPU time they cost."""

    logits: Float32Array
    point: str
    variant: str
    rank: int
    cpu_ns: int


def cache_key(family_digest: bytes, first: str, second: str | None, truncate: bool) -> bytes:
    """A 128-bit key over everything that decides the answer; lengths are hashed too, so that no two
    different requests can be run together into the same bytes."""
    digest = hashlib.blake2b(family_digest, digest_size=16)
    one = first.encode()
    digest.update(b"%d:%d:" % (truncate, len(one)))
    digest.update(one)
    if second is not None:
        digest.update(b"|" + second.encode())
    return digest.digest()


class AnswerCache:
    """Bounded by bytes and age. Used from one thread (the event loop's)."""

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.hits = 0
        self.misses = 0
        self._clock = clock
        self._entries: TTLCache[bytes, CachedAnswer] = self._new(max_bytes, ttl_s)

    def get(self, key: bytes, worst_rank: int) -> CachedAnswer | None:
        """The answer, if it is at least as good as rank `worst_rank` (a smaller rank is a better point)."""
        answer = self._entries.get(key)
        if answer is None or answer.rank > worst_rank:
            self.misses += 1
            return None
        self.hits += 1
        return answer

    def put(self, key: bytes, answer: CachedAnswer) -> None:
        """Keep an answer, unless a better one is kept already."""
        if _size(answer) > self._entries.maxsize:
            return
        kept = self._entries.get(key)
        if kept is None or kept.rank >= answer.rank:
            self._entries[key] = answer

    def resize(self, max_bytes: int, ttl_s: float) -> None:
        """Change the bounds; entries that still fit stay, newest first."""
        if (max_bytes, ttl_s) == (self._entries.maxsize, self._entries.ttl):
            return
        old = self._entries
        self._entries = self._new(max_bytes, ttl_s)
        for key, answer in list(old.items()):
            if _size(answer) <= max_bytes:
                self._entries[key] = answer

    def clear(self) -> None:
        """Forget everything (a new version answers differently)."""
        self._entries.clear()

    @property
    def size_bytes(self) -> int:
        """What the entries occupy, by the estimate that the bound uses."""
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def _new(self, max_bytes: int, ttl_s: float) -> TTLCache[bytes, CachedAnswer]:
        return TTLCache(max_bytes, ttl_s, timer=self._clock, getsizeof=_size)


def _size(answer: CachedAnswer) -> int:
    return ENTRY_OVERHEAD_BYTES + answer.logits.nbytes
