"""The version of every pass: part of each artifact's key and of a whole run's. No torch."""

from __future__ import annotations

from collections.abc import Mapping

VERSIONS: Mapping[str, int] = {
    "answer": 1,
    "average": 1,
    "calibrate": 1,
    "distil": 2,
    "drop_layers": 2,
    "evaluate": 5,
    "export": 2,
    "finetune": 1,
    "low_rank": 1,
    "measure": 3,
    "probe_forms": 4,
    "prune_units": 1,
    "qat": 1,
    "quantize": 7,
    "reconstruct": 1,
    "teach": 1,
    "time_widths": 1,
}
"""Raise a pass's version when its output for the same configuration and inputs changes."""
