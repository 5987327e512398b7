"""What `/info` tells of the family that is served."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from server.engine.engine import Engine

RELEASE = version("jouleserve")


def describe_family(engine: Engine) -> dict[str, Any]:
    """What is served: text-embeddings-inference's `/info` fields, then ours."""
    family, limits = engine.family, engine.limits
    manifest = family.manifest
    labels = {str(index): label for index, label in enumerate(manifest.labels)}
    return {
        "model_id": manifest.family,
        "model_sha": family.version,
        "model_dtype": manifest.variant(manifest.points[0].variant).precision,
        "model_type": {"classifier": {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}},
        "max_input_length": manifest.max_tokens,
        "max_batch_tokens": limits.batch.max_tokens,
        "max_batch_requests": limits.batch.max_rows,
        "max_client_batch_size": limits.max_texts_per_request,
        "max_concurrent_requests": limits.max_queue_requests,
        "auto_truncate": False,
        "tokenization_workers": 1,
        "version": RELEASE,
        "task": manifest.task,
        "pair": manifest.pair,
        "points": [point.model_dump() for point in manifest.points],
        "dial": engine.dial.to_dict(),
        "cache": {"entries": len(engine.cache), "bytes": engine.cache.size_bytes},
        "queued": engine.queued,
    }
