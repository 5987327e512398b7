"""What the engine is given: its bounds, and where it reports what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from server.engine.batching import BatchLimits
from server.shaping.policy import QualityClass


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What may change while the engine runs."""

    batch: BatchLimits = field(default_factory=BatchLimits)
    max_queue_requests: int = 512
    request_timeout_s: float = 10.0
    max_text_chars: int = 20_000
    max_texts_per_request: int = 64
    cache_max_bytes: int = 64 * 1024 * 1024
    cache_ttl_s: float = 300.0
    p99_ns: Mapping[QualityClass, int] = field(default_factory=dict)
    """By class, the 99th percentile beyond which no cascade answers it."""


class UsageSink(Protocol):
    """Where the engine reports what it did; a replica's `server.usage.Usage`."""

    def request(
        self,
        variant: str,
        point: str,
        quality: str,
        outcome: str,
        cpu_ns: int,
        *,
        total_ns: int | None = None,
        queue_ns: int | None = None,
        tokenize_ns: int | None = None,
    ) -> None:
        """One text ended with `outcome`, owing `cpu_ns` of CPU time."""

    def batch(self, variant: str, rows: int, tokens: int, padded_tokens: int, *, infer_ns: int, cpu_ns: int) -> None:
        """One run of a variant's model ended."""

    def count(self, name: str, amount: int = 1) -> None:
        """Count `cache_hits`, `cache_misses`, `escalations`, `spike_overrides` or `latency_guarded`."""

    def avoided(self, reason: str, cpu_ns: int) -> None:
        """CPU time that was not spent thanks to `reason` (`cache`, `batching`, `fallback`, `quantized`)."""

    def traced(self, trace_id: str, variant: str, quality: str, total_ns: int, cpu_ns: int) -> None:
        """A request was answered whose trace was recorded."""
