"""What a reply says of itself beside its scores; each protocol writes it in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from server.engine.engine import Answer


class Told(NamedTuple):
    """Variant(s) and operating point(s) that answered (joined by commas), why, from where, and at what cost.

    `joules` are dynamic and provisional; None, as is their source, where nothing measures them. `joules_loaded` are
    the same with the answer's share of idling and overhead, times PUE; None before that is known. `escalated` is the
    number of texts that a cascade's first variant was unsure of, None for none. `saved_joules` are what computing the
    same texts at full quality would have taken beyond `joules`: an estimate, below 0 where they took more; None
    where full quality computed the answers or nothing measures joules.
    """

    variant: str
    point: str
    reason: str
    cache: str
    version: str
    joules: float | None
    joules_source: str | None
    escalated: int | None = None
    joules_loaded: float | None = None
    saved_joules: float | None = None


def tell(
    answers: Sequence[Answer],
    joules_per_cpu_second: float | None,
    sources: tuple[str, ...],
    version: str,
    loaded_ratio: float | None = None,
) -> Told:
    """Sum up the answers of one request (at least one)."""
    first = answers[0]
    joules = source = loaded = saved = None
    if joules_per_cpu_second is not None:
        joules = sum(answer.cpu_ns for answer in answers) / 1e9 * joules_per_cpu_second
        source = "+".join(sources)
        loaded = None if loaded_ratio is None else joules * loaded_ratio
        saved = sum(answer.saved_ns for answer in answers) / 1e9 * joules_per_cpu_second or None
    if len(answers) == 1:
        escalated = 1 if first.escalate_ns else None
        said = (first.variant, first.point, first.reason, first.cache, version)
        return Told(*said, joules, source, escalated, loaded, saved)
    states = {answer.cache for answer in answers}
    return Told(
        _join(answer.variant for answer in answers),
        _join(answer.point for answer in answers),
        first.reason,
        "mixed" if len(states) > 1 else first.cache,
        version,
        joules,
        source,
        sum(answer.escalate_ns > 0 for answer in answers) or None,
        loaded,
        saved,
    )


def _join(names: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(names))
