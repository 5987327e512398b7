"""The port to a cache that several replicas share, and what an answer looks like in it."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from server.engine.runtime import Float32Array

_MAGIC = b"JSA1"
# Magic, checksum of all that follows, Unix milliseconds, CPU nanoseconds, rank, labels; then the logits.
_HEAD = struct.Struct("<4sIQQHH")
_CHECKED_FROM = 8


@dataclass(frozen=True, slots=True)
class SharedAnswer:
    """An answer of some replica: logits (float32, shape [labels]), the rank of the operating point that gave them, the
    CPU time they cost and how long ago that was."""

    logits: Float32Array
    rank: int
    cpu_ns: int
    age_s: float


class SecondLevel(Protocol):
    """A shared cache. It may lose anything at any time; it must not hold anybody up, nor raise."""

    @property
    def ready(self) -> bool:
        """Whether it is worth asking now."""
        ...

    async def get(self, key: bytes, worst_rank: int, labels: int) -> SharedAnswer | None:
        """The best answer of rank `worst_rank` or better with so many labels; None if there is none, or in trouble."""
        ...

    def put(self, key: bytes, rank: int, logits: Float32Array, cpu_ns: int, ttl_s: float) -> None:
        """Share an answer for `ttl_s` seconds, some time soon."""
        ...

    async def close(self) -> None:
        """Write what is left, within a moment, and disconnect."""
        ...


def encode_answer(rank: int, logits: Float32Array, cpu_ns: int, now_s: float) -> bytes:
    """An answer as bytes; `now_s` is Unix time."""
    values = np.ascontiguousarray(logits, dtype="<f4").tobytes()
    tail = _HEAD.pack(_MAGIC, 0, round(now_s * 1000), cpu_ns, rank, len(logits))[_CHECKED_FROM:] + values
    return struct.pack("<4sI", _MAGIC, zlib.crc32(tail)) + tail


def decode_answer(data: bytes, rank: int, labels: int, now_s: float) -> SharedAnswer | None:
    """The answer in `data`, or None unless it is one: whole, unchanged, of this rank, with so many finite logits."""
    if len(data) != _HEAD.size + 4 * labels:
        return None
    magic, checksum, made_ms, cpu_ns, its_rank, its_labels = _HEAD.unpack_from(data)
    if (magic, its_rank, its_labels) != (_MAGIC, rank, labels) or checksum != zlib.crc32(data[_CHECKED_FROM:]):
        return None
    logits = np.frombuffer(data, dtype="<f4", offset=_HEAD.size).astype(np.float32)
    if not np.isfinite(logits).all():
        return None
    return SharedAnswer(logits, rank, cpu_ns, max(0.0, now_s - made_ms / 1000))
