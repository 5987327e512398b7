"""How many of a run's requests are of which class."""

from __future__ import annotations

from math import inf

CLASSES = ("strict", "standard", "eco")


def parse_mix(mix: str) -> dict[str, float]:
    """`standard=8,strict=1,eco=1` as shares. Raises ValueError naming what is wrong."""
    weights: dict[str, float] = {}
    for part in mix.split(","):
        name, _, weight = part.partition("=")
        if name.strip() not in CLASSES:
            raise ValueError(f"--mix: {name.strip()!r} is no class; use {', '.join(CLASSES)}")
        if name.strip() in weights:
            raise ValueError(f"--mix: {name.strip()} stands there twice; give each class once")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            raise ValueError(f"--mix: {part!r} has no weight; write class=number") from None
    if min(weights.values()) < 0 or not 0 < sum(weights.values()) < inf:
        raise ValueError("--mix: weights must be numbers, not negative, nor all 0")
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}
