"""A published version brought into memory: its tokenizer and one warm runtime for each variant it serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.manifest import Manifest, OperatingPoint, Variant
from models.store import Version
from server.engine.errors import BackendFailure
from server.engine.runtime import OnnxRuntime, Runtime
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
        for rank, candidate in enumerate(self.points):
            if candidate.name == point:
                return rank
        raise KeyError(point)

    def variant_of(self, point: str) -> Variant:
        """The variant that answers at `point`."""
        return self.manifest.variant(self.points[self.rank(point)].variant)


def load_family(version: Version) -> Family:
    """Load a verified version and run every variant once on texts of several lengths.

    Raises BackendFailure if a variant cannot be loaded or answers with a non-finite value.
    """
    manifest = version.manifest
    tokenizer = TextTokenizer(
        version.file(manifest.tokenizer),
        max_tokens=manifest.max_tokens,
        pair=manifest.pair,
        type_ids="token_type_ids" in manifest.inputs,
    )
    served = {point.variant for point in manifest.points}
    runtimes: dict[str, Runtime] = {}
    for variant in manifest.variants:
        if variant.name in served:
            runtimes[variant.name] = _warm(version.file(variant.model), manifest, tokenizer)
    return Family(version.name, version.name.encode(), manifest, tokenizer, runtimes)


def _warm(path: Path, manifest: Manifest, tokenizer: TextTokenizer) -> Runtime:
    try:
        runtime = OnnxRuntime(path, pad_id=manifest.pad_id)
    except Exception as error:  # ONNX Runtime raises many unrelated types
        raise BackendFailure(f"{path}: the runtime cannot load it: {error}") from error
    for batch in _warm_up_batches(manifest, tokenizer):
        logits = runtime.run(batch)
        if logits.shape != (len(batch), len(manifest.labels)) or not bool((logits == logits).all()):
            raise BackendFailure(f"{path}: warm-up gave logits of shape {logits.shape} or not-a-number")
    return runtime


def _warm_up_batches(manifest: Manifest, tokenizer: TextTokenizer) -> list[list[Tokens]]:
    texts = [Text(text, text if manifest.pair else None) for text in WARM_UP_TEXTS]
    tokens = [tokenizer.encode(text, truncate=True) for text in texts]
    return [[one] for one in tokens] + [tokens]
