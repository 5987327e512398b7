"""Answers kept for a while, so that an equal question costs a lookup instead of a forward pass."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from server.engine.runtime import Float32Array
from server.engine.tokenizer import Truncation

# What one entry occupies beside its scores: key, entry object and dictionary slots (measured with tracemalloc on
# CPython 3.11; see tests/server/engine/test_cache.py).
ENTRY_OVERHEAD_BYTES = 600


@dataclass(slots=True, eq=False)
class CachedAnswer:
    """Logits (float32, shape [labels]), the operating point they came from (rank 0 is full quality), and the CPU time
    they cost. `body` is the reply as it was rendered for the last who asked, None until somebody keeps it."""

    logits: Float32Array
    point: str
    variant: str
    rank: int
    cpu_ns: int
    body: bytes | None = None
    _made_s: float = 0.0
    _cache: AnswerCache | None = field(default=None, repr=False)

    def keep_body(self, body: bytes) -> None:
        """Keep the reply, so that the next hit need not render it again. Its bytes count in the cache's bound."""
        if self.body is None:
            self.body = body
            if self._cache is not None:
                self._cache._grow(len(body))


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


class AnswerCache:
    """Bounded by bytes and age, least recently used first out. Used from one thread (the event loop's).

    All entries live equally long, so one that is too old is dropped when it is asked for, or is pushed out by use.
    """

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self.ttl_s = ttl_s
        """How long an answer may be given."""
        self._entries: OrderedDict[bytes, CachedAnswer] = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes, worst_rank: int) -> CachedAnswer | None:
        """The answer, if it is at least as good as rank `worst_rank` (a smaller rank is a better point)."""
        kept = self._entries.get(key)
        if kept is None:
            return None
        if self._clock() - kept._made_s >= self.ttl_s:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return kept if kept.rank <= worst_rank else None

    def put(self, key: bytes, answer: CachedAnswer, age_s: float = 0.0) -> None:
        """Keep an answer, made `age_s` seconds ago, unless a better one is kept already or it is larger than the whole
        cache."""
        now_s = self._clock()
        answer._made_s = now_s - age_s
        if _size(answer) > self._max_bytes or age_s >= self.ttl_s:
            return
        old = self._entries.get(key)
        if old is not None:
            if old.rank < answer.rank and now_s - old._made_s < self.ttl_s:
                return
            self._drop(key)
        answer._cache = self
        self._entries[key] = answer
        self._grow(_size(answer))

    def resize(self, max_bytes: int, ttl_s: float) -> None:
        """Change the bounds. Entries that still fit stay, most recently used first, and grow no younger by it."""
        self._max_bytes, self.ttl_s = max_bytes, ttl_s
        self._grow(0)

    def clear(self) -> None:
        """Forget everything (a new version answers differently)."""
        for answer in self._entries.values():
            answer._cache = None
        self._entries.clear()
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        """What the entries occupy, by the estimate that the bound uses."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def _grow(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        answer = self._entries.pop(key)
        answer._cache = None
        self._bytes -= _size(answer)


def _size(answer: CachedAnswer) -> int:
    return ENTRY_OVERHEAD_BYTES + answer.logits.nbytes + (0 if answer.body is None else len(answer.body))
