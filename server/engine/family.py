"""A published version brought into memory: its tokenizer and one warm runtime for each variant it serves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from models.manifest import Manifest, OperatingPoint
from models.store import Version
from server.engine.errors import BackendFailure
from server.engine.runtime import OnnxRuntime, Runtime
from server.engine.savings import alone_ns_by_tokens, quantized_saving
from server.engine.tokenizer import Text, TextTokenizer, Tokens

WARM_UP_TEXTS = ("ok", "a sentence of ordinary length to warm the runtime up", "word " * 60)


@dataclass(frozen=True)
class Family:
    """Everything a request needs of one version; immutable, so that no answer mixes two versions."""

    version: str
    digest: bytes
    manifest: Manifest
    tokenizer: TextTokenizer
    runtimes: dict[str, Runtime]

    @property
    def points(self) -> tuple[OperatingPoint, ...]:
        """Operating points, full quality first."""
        return self.manifest.points

    def rank(self, point: str) -> int:
        """Position of a point on the front; 0 is full quality. KeyError if it is not there."""
        return self._ranks[point]

    def has(self, points: Iterable[str]) -> bool:
        """Whether all of these points are on the front."""
        return self._ranks.keys() >= set(points)

    def weight(self, variant: str, tokens: int) -> float:
        """Weight of a text in a batch of the variant, about its nanoseconds; `tokens` is what it reads at most."""
        return self._weights[variant][tokens]

    def padding_share(self, variant: str) -> float:
        """What a padded token costs the variant, as a share of a real one."""
        return self._padding_shares[variant]

    def alone_ns(self, variant: str, lengths: Sequence[int]) -> float:
        """CPU nanoseconds of texts of these lengths one by one, as the compiler measured it; 0 if it did not."""
        table = self._alone_ns[variant]
        return 0.0 if table is None else sum(table[length] for length in lengths)

    def quantized_saving(self, variant: str) -> float:
        """How much more the variant would cost in full precision, as a share; 0 if unknown."""
        return self._quantized_savings[variant]

    def full_ns(self, rank: int, variant: str, cpu_ns: int) -> int:
        """What full quality would have taken for a text that took `variant`, of the point of this rank, `cpu_ns`; by
        the compiler's figures of both."""
        return round(cpu_ns * self._times_to_full[variant]) if rank else cpu_ns

    @cached_property
    def _alone_ns(self) -> dict[str, list[float] | None]:
        most, find = self.manifest.max_tokens, self.manifest.variant
        return {name: alone_ns_by_tokens(find(name).evidence.latency, most) for name in self.runtimes}

    @cached_property
    def _quantized_savings(self) -> dict[str, float]:
        find = self.manifest.variant
        return {name: quantized_saving(self.manifest, find(name)) for name in self.runtimes}

    @cached_property
    def _times_to_full(self) -> dict[str, float]:
        full, find = self.points[0], self.manifest.variant
        times = {name: full.cpu_seconds_per_1k / find(name).evidence.cpu_seconds_per_1k for name in self.runtimes}
        return times if full.cascade is not None else {**times, full.variant: 1.0}

    @cached_property
    def _padding_shares(self) -> dict[str, float]:
        return {name: self.manifest.variant(name).cost.padding_share for name in self.runtimes}

    @cached_property
    def _weights(self) -> dict[str, list[float]]:
        lengths = range(self.manifest.max_tokens + 1)
        return {name: [self.manifest.variant(name).cost.weight(n) for n in lengths] for name in self.runtimes}

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return {point.name: rank for rank, point in enumerate(self.points)}


def load_family(version: Version) -> Family:
    """Load a verified version and run every variant once on texts of several lengths.

    Raises BackendFailure, naming the file, if the tokenizer or a variant cannot be loaded, or if a variant does not
    answer with one finite row of scores a text.
    """
    manifest = version.manifest
    tokenizer, batches = _load_tokenizer(version.file(manifest.tokenizer), manifest)
    served = {point.variant for point in manifest.points}
    served |= {point.cascade.first for point in manifest.points if point.cascade is not None}
    runtimes = {
        variant.name: _load_runtime(version.file(variant.model), manifest, batches)
        for variant in manifest.variants
        if variant.name in served
    }
    return Family(version.name, version.name.encode(), manifest, tokenizer, runtimes)


def _load_tokenizer(path: Path, manifest: Manifest) -> tuple[TextTokenizer, list[list[Tokens]]]:
    """The tokenizer, and batches to warm the runtimes up with."""
    type_ids = "token_type_ids" in manifest.inputs
    texts = [Text(text, text if manifest.pair else None) for text in WARM_UP_TEXTS]
    try:
        tokenizer = TextTokenizer(path, max_tokens=manifest.max_tokens, pair=manifest.pair, type_ids=type_ids)
        tokens = [tokenizer.encode(text, truncate="right") for text in texts]
    except Exception as error:  # the library raises plain Exception
        raise BackendFailure(f"{path}: no tokenizer that this release reads: {error}") from error
    return tokenizer, [*([one] for one in tokens), tokens]


def _load_runtime(path: Path, manifest: Manifest, batches: list[list[Tokens]]) -> Runtime:
    try:
        runtime = OnnxRuntime(path, pad_id=manifest.pad_id)
    except Exception as error:  # ONNX Runtime raises many unrelated types
        raise BackendFailure(f"{path}: the runtime cannot load it: {error}") from error
    for batch in batches:
        logits = runtime.run(batch)
        wanted = (len(batch), len(manifest.labels))
        if logits.shape != wanted or not np.isfinite(logits).all():
            raise BackendFailure(f"{path}: warm-up gave scores of shape {logits.shape} (not {wanted}) or not finite")
    return runtime
