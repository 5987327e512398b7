"""The predictor of joules over a whole store: which variants compare, and how well their joules are predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from compile.measure.predictor import Fitted, Measured, fit, fit_and_judge, others
from compile.measure.scores import spearman
from models.manifest import Manifest
from models.store import Store


@dataclass(frozen=True, order=True)
class Setting:
    """Joules compare only on the same CPU, from the same source and at the same precision."""

    cpu: str
    energy_source: str
    precision: str


def manifests(store: Store, shown: Manifest) -> list[Manifest]:
    """Of every family in a store the newest manifest that this release reads, of its own family the one `shown`.

    One version a family: another one holds much the same variants, and would tell a predictor what it is judged by.
    Model files are not looked at.
    """
    newest = (shown if family == shown.family else _newest(store, family) for family in store.families())
    return [manifest for manifest in newest if manifest is not None]


def _newest(store: Store, family: str) -> Manifest | None:
    for name in reversed(store.versions(family)):
        try:
            return Manifest.model_validate_json((store.root / family / name / "manifest.json").read_bytes())
        except (OSError, ValidationError):
            continue
    return None


def comparable(of: Sequence[Manifest]) -> dict[Setting, list[Measured]]:
    """Variants with measured joules and counted MACs, by what they can be compared in."""
    groups: dict[Setting, list[Measured]] = {}
    for manifest in of:
        for variant in manifest.variants:
            e = variant.evidence
            if e.joules_per_1k is None or e.energy_source is None or e.macs_per_text is None:
                continue
            setting = Setting(manifest.target_cpu.model, e.energy_source, variant.precision)
            row = Measured(manifest.family, e.macs_per_text, e.parameters, e.joules_per_1k)
            groups.setdefault(setting, []).append(row)
    return dict(sorted(groups.items()))


def judged_fits(groups: Mapping[Setting, Sequence[Measured]]) -> dict[Setting, Fitted]:
    """A predictor with its errors for every group that is large enough."""
    made = {setting: fit_and_judge(rows) for setting, rows in groups.items()}
    return {setting: fitted for setting, fitted in made.items() if fitted is not None}


def indicator(rows: Sequence[Measured]) -> float | None:
    """Rank correlation of MACs per parameter with joules; None where one of them is the same for all rows."""
    ratios = np.array([row.macs / row.parameters for row in rows])
    found = spearman(ratios, np.array([row.joules_per_1k for row in rows]))
    return found if np.isfinite(found) else None


def held_out(rows: Sequence[Measured]) -> list[tuple[float, float]]:
    """(measured, predicted) joules per 1,000 texts, each row predicted by a fit to all other models."""
    pairs = []
    for row in rows:
        predictor = fit(others(row, rows))
        pairs.append((row.joules_per_1k, predictor.joules_per_1k(row.macs, row.parameters)))
    return pairs
