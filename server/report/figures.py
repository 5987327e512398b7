"""Figures of a period: each with its unit, its band and where it comes from. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from energy.sci import HOURS_PER_YEAR, Hardware, Sci, score
from server.report.rows import HourRow, Period, joined, row_sum

JOULES_PER_KWH = 3_600_000.0
MILLIGRAMS = 1000.0
ANSWERED = frozenset({"ok", "cached"})
_WHOLE = 0.99
"""Share of an hour from which on its grams are taken as counted."""
OVERLAPPING = frozenset({"psys", "core", "uncore"})
REASONS = ("batching", "cache", "fallback", "quantized", "spike")
SMALLER = ("fallback", "spike")
"""Reasons for which a cheaper point answered in place of full quality."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the report."""

    name: str
    value: float
    unit: str
    source: str
    """Which measurement or input it follows from."""
    low: float | None = None
    high: float | None = None

    @classmethod
    def banded(cls, name: str, value: float, unit: str, source: str, uncertainty: float) -> Figure:
        """With a band of so much to both sides."""
        return cls(name, value, unit, source, value * max(1 - uncertainty, 0.0), value * (1 + uncertainty))


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What the user has to say, since no meter knows it."""

    hardware: Hardware
    tariff_per_kwh: float
    currency: str


@dataclass(frozen=True)
class Report:
    """Everything that is written."""

    begin: str
    end: str
    origin: str
    hours: float
    energy: tuple[Figure, ...]
    requests: tuple[Figure, ...]
    carbon: tuple[Figure, ...]
    sci: tuple[Figure, ...]
    returns: tuple[Figure, ...]
    by_account: tuple[Mapping[str, Any], ...]
    hourly: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain maps and lists; numbers with nine significant digits."""
        tree: dict[str, Any] = _rounded(asdict(self))
        return tree


def make_report(period: Period, assumed: Assumptions) -> Report:
    """The figures of a period."""
    energy = _Energy(period)
    carbon = _carbon(period, energy)
    sci = _sci(period, energy, assumed)
    return Report(
        begin=period.begin,
        end=period.end,
        origin=period.origin,
        hours=period.hours,
        energy=energy.figures(),
        requests=_requests(period, energy),
        carbon=carbon,
        sci=sci,
        returns=_returns(period, energy, assumed),
        by_account=_by_account(period, energy.source),
        hourly=tuple(_hourly(row, energy.source) for row in period.rows),
        notes=_notes(period, energy),
    )


class _Energy:
    """Joules of a period, by whom they are owed, and how sure they are."""

    def __init__(self, period: Period) -> None:
        unattributed = period.by("jouleserve_unattributed_joules_total", "reason")
        self.measured = period.sum("jouleserve_energy_joules_total", lambda ls: ls["domain"] not in OVERLAPPING)
        self.idle = period.sum("jouleserve_idle_joules_total", lambda ls: ls["domain"] not in OVERLAPPING)
        self.attributed = period.sum("jouleserve_attributed_joules_total")
        self.overhead = unattributed.get(("overhead",), 0.0)
        self.late = unattributed.get(("late_record",), 0.0)
        self.other = sum(unattributed.values()) - self.overhead - self.late
        self.loaded = period.sum("jouleserve_loaded_joules_total")
        self.answered = period.sum("jouleserve_requests_total", lambda labels: labels["outcome"] in ANSWERED)
        self.source = joined(source for (source,) in period.by("jouleserve_energy_joules_total", "source"))
        self.band = max(period.weighted(lambda row: row.uncertainty).values(), default=0.0)
        self.dynamic_band = max(period.weighted(lambda row: row.dynamic_uncertainty).values(), default=0.0)
        self.pue = _mean_pue(period)

    @property
    def serving(self) -> float:
        """What the service owes: its requests, those whose record came late, its overhead and the machine's idling."""
        return self.attributed + self.late + self.overhead + self.idle

    def figures(self) -> tuple[Figure, ...]:
        meter = f"meter ({self.source})"
        rows = (
            ("drawn by the machine", self.measured, meter, self.band),
            ("owed by requests (dynamic)", self.attributed, f"{meter}, attribution", self.dynamic_band),
            ("idling", self.idle, f"{meter}, idle power", self.band),
            ("overhead of serving", self.overhead, f"{meter}, attribution", self.dynamic_band),
            ("requests whose record came late", self.late, f"{meter}, attribution", self.dynamic_band),
            ("other: not the service's", self.other, f"{meter}, attribution", self.dynamic_band),
            ("the service: requests, idling, overhead", self.serving, meter, self.band),
            ("the service at the building's meter", self.serving * self.pue, f"{meter}, PUE {self.pue:.3g}", self.band),
        )
        return tuple(
            Figure.banded(name, joules / JOULES_PER_KWH, "kWh", source, band) for name, joules, source, band in rows
        )


def _mean_pue(period: Period) -> float:
    """Weighted by the metered seconds."""
    seconds = sum(row.seconds for row in period.rows)
    return sum(row.pue * row.seconds for row in period.rows) / seconds if seconds > 0 else period.latest.pue


def _requests(period: Period, energy: _Energy) -> tuple[Figure, ...]:
    counted = period.by("jouleserve_requests_total", "outcome")
    figures = [Figure("answered", energy.answered, "texts", "requests_total, outcomes ok and cached")]
    figures += [
        Figure(f"of these and others: {outcome}", n, "texts", "requests_total") for (outcome,), n in counted.items()
    ]
    if energy.answered > 0:
        per_answer = (
            ("dynamic joules an answer", energy.attributed, "attributed_joules_total", energy.dynamic_band),
            ("fully loaded joules an answer", energy.loaded, "loaded_joules_total", energy.band),
        )
        figures += [
            Figure.banded(name, joules / energy.answered, "J", f"{counter} / answered ({energy.source})", band)
            for name, joules, counter, band in per_answer
        ]
    return tuple(figures)


def _carbon(period: Period, energy: _Energy) -> tuple[Figure, ...]:
    source = f"carbon_grams_total ({energy.source} x {_grid_words(period)})"
    scopes = period.by("jouleserve_carbon_grams_total", "scope")
    figures = [
        Figure.banded(f"{scope}, PUE included", grams, "gCO2e", source, energy.band)
        for (scope,), grams in scopes.items()
    ]
    if (mean := _mean_intensity(period)) is not None:
        figures.append(Figure("grid intensity, mean over time", mean, "gCO2e/kWh", _grid_words(period)))
    return tuple(figures)


def _sci(period: Period, energy: _Energy, assumed: Assumptions) -> tuple[Figure, ...]:
    """The score of the hours in which the grid's intensity was known: all three of its parts are of them alone. Within
    such an hour its mean over the part that it was known for stands for the whole."""
    rows = [row for row in period.rows if row.intensity is not None and row.known_share > 0]
    known = Period.of(rows, period.begin, period.end, period.origin)
    grams, hardware = sum(_operational_grams(row) for row in rows), assumed.hardware
    units = known.sum("jouleserve_requests_total", lambda labels: labels["outcome"] in ANSWERED)
    found: Sci | None = score(grams, energy.band, hardware, known.machine_hours, round(units))
    if found is None:
        return ()
    left_out = len(period.rows) - len(rows)
    scope = f" (without {left_out} of {len(period.rows)} hours, whose intensity is not known)" if left_out else ""
    operational = f"hour by hour: joules ({energy.source}) x PUE x {_grid_words(period)}{scope}"
    return (
        Figure.banded("O: operational", grams, "gCO2e", operational, energy.band),
        Figure.banded(
            "M: embodied", found.embodied_grams, "gCO2e", "TE x TS x RS", hardware.relative_uncertainty
        ),
        Figure("TE: a server's manufacture", hardware.total_kg, "kgCO2e", hardware.source),
        Figure(
            "TS: share of its life", known.machine_hours / (hardware.lifespan_years * HOURS_PER_YEAR), "ratio",
            f"{known.machine_hours:.3g} metered hours of machines of {hardware.lifespan_years:g} years{scope}",
        ),
        Figure("RS: share of it reserved", hardware.resource_share, "ratio", "input (--resource-share)"),
        Figure(
            "R: functional units", float(found.units), "answers", f"requests_total, outcomes ok and cached{scope}"
        ),
        Figure.banded(
            "SCI", found.grams_per_unit * MILLIGRAMS, "mgCO2e an answer", "(O + M) / R", found.relative_uncertainty
        ),
    )  # fmt: skip


def _operational_grams(row: HourRow) -> float:
    """As they were counted. Of an hour whose intensity was known for a part, whatever the service did in that part: all
    its joules at the mean intensity."""
    if row.intensity is not None and row.known_share < _WHOLE:
        return _service_joules(row) * row.pue / JOULES_PER_KWH * row.intensity
    return row_sum(row, "jouleserve_carbon_grams_total") - row_sum(row, "jouleserve_carbon_grams_total", scope="other")


def _service_joules(row: HourRow) -> float:
    owed = [row_sum(row, "jouleserve_unattributed_joules_total", reason=one) for one in ("overhead", "late_record")]
    return row_sum(row, "jouleserve_attributed_joules_total") + sum(owed) + _idle_joules(row)


def _idle_joules(row: HourRow) -> float:
    return sum(
        value
        for (name, pairs), value in row.counters.items()
        if name == "jouleserve_idle_joules_total" and dict(pairs)["domain"] not in OVERLAPPING
    )


def _returns(period: Period, energy: _Energy, assumed: Assumptions) -> tuple[Figure, ...]:
    """What the work returned: each saving against its own counterfactual, so they are not to be added."""
    kwh = energy.serving * energy.pue / JOULES_PER_KWH
    currency, tariff = assumed.currency, f"input (--tariff {assumed.tariff_per_kwh:g} {assumed.currency}/kWh)"
    figures = [
        Figure.banded("cost of the service's energy", kwh * assumed.tariff_per_kwh, currency, tariff, energy.band)
    ]
    avoided = {reason: _avoided(period, reason) for reason in REASONS}
    for reason, (saved_kwh, grams, timing) in avoided.items():
        source = f"energy_avoided_joules_total{{reason={reason}}} ({energy.source}) x PUE"
        band = energy.dynamic_band
        figures.append(Figure.banded(f"saved by {reason}", saved_kwh, "kWh", source, band))
        figures.append(Figure.banded(f"saved by {reason}", saved_kwh * assumed.tariff_per_kwh, currency, tariff, band))
        if grams is not None:
            figures.append(
                Figure.banded(f"saved by {reason}", grams, "gCO2e", f"{source} x each hour's intensity", band)
            )
        if reason == "fallback" and timing is not None:
            low, high = sorted((timing * (1 - band), timing * (1 + band)))
            words = "of that by timing: fallback in hours dirtier than the period's mean, less those cleaner"
            figures.append(Figure(words, timing, "gCO2e", f"{source} x (hour's - mean intensity)", low, high))
    return (*figures, *_payback(period, energy, sum(avoided[reason][0] for reason in SMALLER), kwh))


def _avoided(period: Period, reason: str) -> tuple[float, float | None, float | None]:
    """kWh at the building's meter that were not drawn, their grams at each hour's intensity, and what of the grams is
    owed to the hours; None without an intensity."""
    rows = [
        (row_sum(row, "jouleserve_energy_avoided_joules_total", reason=reason) * row.pue / JOULES_PER_KWH, row)
        for row in period.rows
    ]
    kwh = sum(saved for saved, _ in rows)
    mean = _mean_intensity(period)
    if mean is None:
        return kwh, None, None
    known = [(saved, row.intensity) for saved, row in rows if row.intensity is not None]
    return kwh, sum(s * i for s, i in known), sum(s * (i - mean) for s, i in known)


def _payback(period: Period, energy: _Energy, fallback_kwh: float, kwh: float) -> tuple[Figure, ...]:
    """Compiling against what the cheaper variants saved over answering everything at full quality; when that pays back
    is told only where the joules of every variant are known."""
    compiled = period.latest.compiled
    costs = [cost for cost in compiled if cost.get("joules") is not None]
    if not costs:
        return ()
    joules = sum(float(cost["joules"]) for cost in costs)
    figures = [
        _compiling(costs, joules, len(compiled)),
        Figure("the service, always at full quality", kwh + fallback_kwh, "kWh", "service + saved by fallback, spike"),
    ]
    # At the machine's own meter, as the joules of compiling are.
    saved = sum(
        row_sum(row, "jouleserve_energy_avoided_joules_total", reason=reason)
        for row in period.rows
        for reason in SMALLER
    )
    if saved > 0 and energy.answered > 0 and len(costs) == len(compiled):
        figures.append(
            Figure(
                "break-even",
                math.ceil(joules / (saved / energy.answered)),
                "answers",
                "compile joules / saved an answer, both without PUE",
            )
        )
        figures.append(
            Figure(
                "payback at this load",
                joules / saved * period.hours,
                "hours",
                "compile joules / saved an hour, both without PUE",
            )
        )
    return tuple(figures)


def _compiling(costs: Sequence[Mapping[str, Any]], joules: float, variants: int) -> Figure:
    """With the band of the meter that compiling was measured by, where every variant says what that is."""
    source = joined(str(cost["source"]) for cost in costs if cost.get("source"))
    words = f"compile_joules of the manifest ({'unknown' if source == 'none' else source})"
    if len(costs) < variants:
        words += f", of {len(costs)} of {variants} variants"
    errors = [cost.get("relative_uncertainty") for cost in costs]
    if any(error is None for error in errors) or joules <= 0:
        return Figure("compiling the variants, once", joules / JOULES_PER_KWH, "kWh", words)
    # Of one meter, which errs the same way each time.
    band = sum(float(error or 0) * cost["joules"] for error, cost in zip(errors, costs, strict=True)) / joules
    return Figure.banded("compiling the variants, once", joules / JOULES_PER_KWH, "kWh", words, band)


def _by_account(period: Period, source: str) -> tuple[Mapping[str, Any], ...]:
    labels = ("model", "variant", "class", "outcome")
    dynamic = period.by("jouleserve_attributed_joules_total", *labels)
    loaded = period.by("jouleserve_loaded_joules_total", *labels)
    counted = period.by("jouleserve_requests_total", *labels)
    return tuple(
        {
            **dict(zip(labels, key, strict=True)),
            "texts": counted.get(key, 0.0),
            "dynamic_joules": dynamic.get(key, 0.0),
            "loaded_joules": loaded.get(key, 0.0),
            "source": source,
        }
        for key in sorted({*dynamic, *loaded, *counted})
    )


def _hourly(row: HourRow, source: str) -> Mapping[str, Any]:
    attributed = row_sum(row, "jouleserve_attributed_joules_total")
    overhead = row_sum(row, "jouleserve_unattributed_joules_total", reason="overhead")
    other = row_sum(row, "jouleserve_unattributed_joules_total") - overhead
    return {
        "hour": row.hour,
        "seconds": row.seconds,
        "attributed_joules": attributed,
        "idle_joules": _idle_joules(row),
        "overhead_joules": overhead,
        "other_joules": other,
        "source": source,
        "grams_per_kwh": row.intensity,
        "intensity_source": joined(row.intensity_kinds),
    }


def _mean_intensity(period: Period) -> float | None:
    known = [(row.intensity, row.seconds) for row in period.rows if row.intensity is not None]
    seconds = sum(s for _, s in known)
    return sum(i * s for i, s in known) / seconds if seconds > 0 else None


def _grid_words(period: Period) -> str:
    latest = period.latest
    kinds = joined(kind for row in period.rows for kind in row.intensity_kinds)
    named = f"{latest.provider or 'no provider'}, {latest.zone or 'no zone'}, {kinds}"
    return f"grid intensity, average, location-based ({named})"


def _notes(period: Period, energy: _Energy) -> tuple[str, ...]:
    known_s = sum(row.known_share * row.seconds for row in period.rows)
    seconds = sum(row.seconds for row in period.rows)
    missing = period.by("jouleserve_energy_missing_readings_total", "domain", "reason")
    unmetered = period.sum("jouleserve_unmetered_joules_total")
    known_share = known_s / seconds if seconds else 0.0
    notes = [
        f"Energy by {energy.source}; bands are +-{energy.band:.0%}, of dynamic joules +-{energy.dynamic_band:.0%}.",
        f"The grid's intensity was known for {known_share:.1%} of the metered time; the grams cover that time alone,"
        " and the score the hours in which it was known.",
        "Bands are those of the energy source; the error of the grid's figures is not stated by their providers.",
        "Savings are estimates of what did not happen, each against its own counterfactual: do not add them.",
    ]
    if missing:
        words = ", ".join(f"{domain} {reason} {ticks:g}" for (domain, reason), ticks in missing.items())
        notes.append(
            f"Ticks without a figure: {words}; what counters showed in them that nobody can vouch for,"
            f" {unmetered:.6g} J, is in no other number."
        )
    return tuple(notes)


def _rounded(tree: Any) -> Any:
    if isinstance(tree, float):
        return float(f"{tree:.9g}")
    if isinstance(tree, dict):
        return {key: _rounded(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_rounded(value) for value in tree]
    return tree
