"""What decides a run's outcome, as one digest: a version that has it need not be made again."""

from __future__ import annotations

import hashlib
import json

from compile.bases import Base
from compile.passes.versions import VERSIONS
from compile.recipe import Recipe
from compile.versions import library_versions
from models.manifest import TargetCpu

LINE_VERSION = 2
"""Raise it when the same recipe must be published again although its passes kept their versions."""
RUN_KEY = "run_sha256"
"""Name of the digest in a manifest's `recipe`."""


def run_key(recipe: Recipe, dataset_digest: str, base: Base, cpu: TargetCpu) -> str:
    """Digest of what decides a run's outcome: recipe, data, base weights, the CPU compiled for, library versions."""
    settings = recipe.model_dump(mode="json")
    # The rows decide, not where they lie.
    settings["data"].pop("source")
    settings.pop("base")
    described = {
        "settings": settings,
        "data": dataset_digest,
        "base": base.digest,
        "cpu": cpu.model_dump(mode="json"),
        "line": LINE_VERSION,
        "passes": dict(VERSIONS),
        "libraries": library_versions(),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
