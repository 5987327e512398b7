"""Answers kept for a while, so that an equal question costs a lookup instead of a forward pass."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cachetools import TLRUCache

from server.engine.runtime import Float32Array
from server.engine.tokenizer import Truncation

# What one entry occupies beside its scores: key, entry objects, expiry heap and dictionary slots (measured with
# tracemalloc on CPython 3.11; see tests/server/engine/test_cache.py).
ENTRY_OVERHEAD_BYTES = 1000


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """Logits (float32, shape [labels]), the operating point they came from (rank 0 is full quality), and the CPU time
    they cost."""

    logits: Float32Array
    point: str
    variant: str
    rank: int
    cpu_ns: int


def cache_key(family_digest: bytes, first: str, second: str | None, truncate: Truncation | None) -> bytes:
    """A 128-bit key over everything that decides the answer.

    Lengths are hashed too, so that no two different requests run together into the same bytes. Raises
    UnicodeEncodeError for a text with a lone surrogate.
    """
    one = first.encode()
    digest = hashlib.blake2b(b"%b:%d:%d:" % ((truncate or "").encode(), len(family_digest), len(one)), digest_size=16)
    digest.update(family_digest)
    digest.update(one)
    if second is not None:
        digest.update(b"|" + second.encode())
    return digest.digest()


class _Kept(NamedTuple):
    """An entry, and when it was made."""

    answer: CachedAnswer
    made_s: float


class AnswerCache:
    """Bounded by bytes and age, least recently used first out. Used from one thread (the event loop's)."""

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._entries = self._new(max_bytes)

    def get(self, key: bytes, worst_rank: int) -> CachedAnswer | None:
        """The answer, if it is at least as good as rank `worst_rank` (a smaller rank is a better point)."""
        kept = self._entries.get(key)
        return None if kept is None or kept.answer.rank > worst_rank else kept.answer

    def put(self, key: bytes, answer: CachedAnswer) -> None:
        """Keep an answer, unless a better one is kept already or it is larger than the whole cache."""
        new = _Kept(answer, self._clock())
        if _size(new) > self._entries.maxsize:
            return
        old = self._entries.get(key)
        if old is None or old.answer.rank >= answer.rank:
            self._entries[key] = new

    def resize(self, max_bytes: int, ttl_s: float) -> None:
        """Change the bounds. Entries that still fit stay, newest first, and grow no younger by it."""
        if (max_bytes, ttl_s) == (self._entries.maxsize, self._ttl_s):
            return
        kept = sorted(self._entries.items(), key=lambda item: item[1].made_s)
        self._ttl_s = ttl_s
        self._entries = self._new(max_bytes)
        for key, entry in kept:
            if _size(entry) <= max_bytes:
                self._entries[key] = entry

    def clear(self) -> None:
        """Forget everything (a new version answers differently)."""
        self._entries.clear()

    @property
    def size_bytes(self) -> int:
        """What the entries occupy, by the estimate that the bound uses."""
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def _new(self, max_bytes: int) -> TLRUCache[bytes, _Kept]:
        return TLRUCache(max_bytes, self._expiry, timer=self._clock, getsizeof=_size)

    def _expiry(self, _key: bytes, kept: _Kept, _now: float) -> float:
        return kept.made_s + self._ttl_s


def _size(kept: _Kept) -> int:
    return ENTRY_OVERHEAD_BYTES + kept.answer.logits.nbytes
