"""What a report says: a manifest, and the manifests it is compared with, as a document. Pure; no clock is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from compile.report import plots
from compile.report.document import Block, Bullets, Document, Folded, Heading, Table, Text
from compile.report.figures import (
    Judged,
    PassCost,
    baseline,
    cheapest_keeping,
    compact,
    in_joules,
    judged,
    pass_costs,
    size_bytes,
    ways,
)
from compile.report.predictions import Setting, comparable, held_out, indicator, judged_fits
from models.manifest import Estimate, Evidence, Manifest, OperatingPoint, Variant

_KEPT_SHARES = (0.99, 0.95, 0.90)
_ROWS_PLOTTED = 16
NONE = "–"
_ABOUT_R2 = (
    "R2 is 1 - mean squared error / variance of the test labels, clipped to [0, 1]: 0 is always answering their mean. "
    "Its bounds are by the bootstrap over the test texts, paired with the teacher's where they are relative to it."
)


def build(manifest: Manifest, version: str, peers: Sequence[Manifest]) -> Document:
    """The report of a version; `peers` are the manifests (its own among them) that the predictor is fitted to."""
    blocks: list[Block] = [
        Text(
            f"Compiled {manifest.created_utc} for {manifest.target_cpu.model}; {_answers(manifest)}, "
            f"{manifest.variants[0].evidence.test_rows} test texts."
        ),
        *_summary(manifest),
        *_relative(manifest),
        *_points(manifest),
        *_evidence(manifest),
        *_times(manifest),
        *_costs(manifest),
        *_candidates(manifest),
        *_predictor(manifest, peers),
        *_origin(manifest),
    ]
    return Document(f"{manifest.family} {version}", tuple(blocks))


def _summary(manifest: Manifest) -> Iterator[Block]:
    whole = baseline(manifest).evidence
    shares: dict[OperatingPoint | None, float] = {}
    for share in _KEPT_SHARES:
        # A point that keeps more is named for the most that it keeps, once.
        shares.setdefault(cheapest_keeping(share, manifest), share)
    lines = []
    for point, share in shares.items():
        if point is None:
            lines.append(f"At least {share:.0%} of the teacher's {manifest.accuracy_name}: no operating point.")
            continue
        lines.append(
            f"At least {share:.0%} of the teacher's {manifest.accuracy_name}: {point.name}, "
            f"{_share(point.relative_accuracy)} at "
            f"{_part(point.cpu_seconds_per_1k, whole.cpu_seconds_per_1k)} of its CPU time and "
            f"{_part(point.joules_per_1k, whole.joules_per_1k)} of its joules."
        )
    yield Bullets(tuple(lines))
    unit = "CPU-seconds per 1,000 texts"
    if in_joules(manifest):
        unit = f"dynamic joules per 1,000 texts ({whole.energy_source})"
    yield plots.accuracy_against_cost(ways(manifest), unit, manifest.accuracy_name)


def _relative(manifest: Manifest) -> Iterator[Block]:
    whole = baseline(manifest)
    yield Heading("Relative to the teacher")
    yield relative_table(manifest)
    yield Text(
        f"100% is {whole.name} at the same batches. At least: one-sided 95% lower bound. Time is CPU time of one "
        "thread, batches as a busy server forms them, the least of several interleaved repeats. "
        + _about_energy(whole.evidence)
    )


def relative_table(manifest: Manifest) -> Table:
    """The table that papers on compression give: accuracy, size, time and energy as shares of the teacher's."""
    whole = baseline(manifest).evidence
    rows = []
    for variant in manifest.variants:
        e = variant.evidence
        name = variant.name + (" (teacher)" if variant.reference else "")
        rows.append((name, str(variant.layers), variant.precision, *_shares(e, e.size_bytes, whole)))
    for point in manifest.points:
        if point.cascade is not None:
            used = [manifest.variant(name) for name in (point.cascade.first, point.variant)]
            layers = " + ".join(str(variant.layers) for variant in used)
            precision = "/".join(sorted({variant.precision for variant in used}))
            rows.append((point.name, layers, precision, *_shares(point, size_bytes(manifest, point), whole)))
    columns = (
        "variant", "layers", "precision", f"% {manifest.accuracy_name}", "% size", "% time", "% energy",
        f"{manifest.accuracy_name} (at least)", "MB", "CPU-s/1k", "J/1k",
    )  # fmt: skip
    return Table(columns, tuple(rows), words=3)


def _shares(of: Evidence | OperatingPoint, size: int, whole: Evidence) -> tuple[str, ...]:
    return (
        f"{of.relative_accuracy * 100:.1f}",
        f"{size / whole.size_bytes * 100:.1f}",
        f"{of.cpu_seconds_per_1k / whole.cpu_seconds_per_1k * 100:.1f}",
        _part(of.joules_per_1k, whole.joules_per_1k).removesuffix("%"),
        f"{of.accuracy:.4f} ({of.accuracy_lower:.4f})",
        f"{size / 1e6:.1f}",
        f"{of.cpu_seconds_per_1k:.3f}",
        _shown(of.joules_per_1k, ".2f"),
    )


def _about_energy(e: Evidence) -> str:
    if e.joules_per_1k is None:
        return "Joules were not measured."
    band = "" if e.energy_relative_uncertainty is None else f", ±{e.energy_relative_uncertainty:.0%}"
    text = f"Joules are dynamic (above idling), source {e.energy_source}{band}."
    if e.energy_source == "estimated":
        text += " They are estimated from CPU time, so shares of energy equal shares of time."
    return text


def _points(manifest: Manifest) -> Iterator[Block]:
    rows = []
    for point in manifest.points:
        cascade = point.cascade
        way = point.variant
        if cascade is not None:
            way = (
                f"{cascade.first} first, {point.variant} below confidence {cascade.threshold:.3f} "
                f"(temperature {cascade.temperature:.2f}; {cascade.escalated_share:.1%} escalate)"
            )
        kept = _share(point.relative_accuracy)
        if point.relative_accuracy_lower is not None:
            kept += f" ({_share(point.relative_accuracy_lower)})"
        alone = _shown(point.alone_cpu_seconds_per_1k, ".3f")
        costs = (f"{point.cpu_seconds_per_1k:.3f}", alone, _shown(point.joules_per_1k, ".2f"))
        rows.append((point.name, way, f"{point.accuracy:.4f} ({point.accuracy_lower:.4f})", kept, *costs))
    yield Heading("Operating points, full quality first")
    shares = (f"{manifest.accuracy_name} (at least)", "of teacher (at least)")
    yield Table(("point", "answers", *shares, "CPU-s/1k", "alone", "J/1k"), tuple(rows), words=2)
    tokenizing = manifest.points[0].tokenizing_cpu_seconds_per_1k
    if tokenizing is not None:
        yield Text(
            f"CPU-seconds and joules are the graphs', in batches as a busy server forms them; tokenizing takes "
            f"{tokenizing:.3f} CPU-s per 1,000 texts besides. Alone: texts that come one by one, tokenizing included."
        )


def _evidence(manifest: Manifest) -> Iterator[Block]:
    every = judged(manifest)
    named = [(one, one.evidence) for one in every]
    lines: list[tuple[str, list[str]]] = [
        (f"{manifest.accuracy_name} (at least)", [f"{e.accuracy:.4f} ({e.accuracy_lower:.4f})" for _, e in named]),
        ("Matthews correlation", [_estimate(e.matthews) for _, e in named]),
        ("macro F1", [_estimate(e.f1_macro) for _, e in named]),
        ("Pearson correlation", [_estimate(e.pearson) for _, e in named]),
        ("Spearman correlation", [_estimate(e.spearman) for _, e in named]),
        ("root mean squared error", [_estimate(e.rmse) for _, e in named]),
        ("agrees with its fp32 graph", [_share(e.agreement_with_fp32) for _, e in named]),
        ("layers, precision, graph form", [f"{v.layers}, {v.precision}, {v.graph_form}" for v, _ in named]),
        ("parameters, million", [f"{e.parameters / 1e6:.2f}" for _, e in named]),
        ("MACs a text, million", [_shown(e.macs_per_text and e.macs_per_text / 1e6, ".1f") for _, e in named]),
        ("MACs per parameter", [_shown(e.macs_per_parameter, ".2f") for _, e in named]),
        ("size, MB", [f"{e.size_bytes / 1e6:.1f}" for _, e in named]),
        ("CPU-s per 1,000 texts", [f"{e.cpu_seconds_per_1k:.3f}" for _, e in named]),
        ("J per 1,000 texts", [_shown(e.joules_per_1k, ".2f") for _, e in named]),
        ("compile CPU-s", [_shown(e.compile_cpu_seconds, ",.0f") for _, e in named]),
        ("compile J", [_shown(e.compile_joules, ",.0f") for _, e in named]),
        ("break-even requests", [_shown(e.break_even_requests, ",d") for _, e in named]),
    ]
    rows = tuple((name, *cells) for name, cells in lines if any(cell != NONE for cell in cells))
    yield Heading("Evidence of each variant")
    yield Table(("", *(_column(one) for one in every)), rows)
    yield Bullets((
        *((_ABOUT_R2,) if manifest.regression else ()),
        "In brackets after a correlation, F1 or error: its 95% bootstrap interval over the test texts.",
        "Multiply-accumulates (MACs) are those of a text of the set's mean length.",
        "Break-even: requests after which the joules spent on compiling the variant (its teacher included) are saved "
        "against serving the fp32 teacher.",
        *(f"{v.name}: kept in fp32: {', '.join(v.notes['fp32_products'])}."
          for v in manifest.variants if v.notes.get("fp32_products")),
        *(f"{one.name}: compile joules are not known: {one.unmeasured}." for one in every if one.unmeasured),
        f"Graph forms probed, CPU-s/1k of a 2-layer slice: {_forms(manifest.variants[0])}.",
    ))  # fmt: skip


def _times(manifest: Manifest) -> Iterator[Block]:
    timed = [one for one in judged(manifest) if one.evidence.latency]
    served = [one for one in timed if not one.left_out]
    if not served:
        return
    most_rows = max(cell.rows for one in served for cell in one.evidence.latency)
    rows_plotted = min(_ROWS_PLOTTED, most_rows)
    series = [
        (v.name, [(c.tokens, c.cpu_ms_per_text) for c in v.evidence.latency if c.rows == rows_plotted]) for v in served
    ]
    yield Heading("CPU time by batch and length")
    yield plots.time_by_length([(name, cells) for name, cells in series if cells], rows_plotted)
    yield Folded("Every batch shape: CPU milliseconds a text", _shape_table(timed))


def _column(of: Judged) -> str:
    return f"{of.name} (left out)" if of.left_out else of.name


def _shape_table(variants: Sequence[Judged]) -> Table:
    shapes = sorted({(cell.rows, cell.tokens) for v in variants for cell in v.evidence.latency})
    times = {(v.name, c.rows, c.tokens): c.cpu_ms_per_text for v in variants for c in v.evidence.latency}
    rows = [
        (str(r), str(t), *(_shown(times.get((v.name, r, t)), ".3f") for v in variants)) for r, t in shapes
    ]  # fmt: skip
    return Table(("rows", "tokens", *(_column(v) for v in variants)), tuple(rows), words=0)


def _costs(manifest: Manifest) -> Iterator[Block]:
    costs = pass_costs(manifest)
    yield Heading("Where the compile's joules went")
    if not costs:
        yield Text("This version does not say what its passes cost.")
        return
    measured = all(cost.joules is not None for cost in costs)
    yield plots.amount_by_pass(
        [(cost.pass_name, _amount(cost, measured)) for cost in costs], "joules" if measured else "CPU-seconds"
    )
    whole = sum(_amount(cost, measured) for cost in costs) or 1.0
    rows = tuple(
        (
            c.pass_name,
            str(c.runs),
            f"{c.cpu_seconds:,.1f}",
            _shown(c.joules, ",.1f"),
            f"{_amount(c, measured) / whole:.1%}",
        )
        for c in costs
    )
    yield Table(("pass", "runs", "CPU-s", "J", "share"), rows)
    text = "Work that several variants share counts once; what was spent on candidates that were left out is in it."
    why = sorted({str(p["unmeasured"]) for c in manifest.candidates for p in c.get("passes", ()) if "unmeasured" in p})
    yield Text(" ".join([text, *(f"Joules that are not known: {reason}." for reason in why)]))


def _amount(cost: PassCost, in_joules: bool) -> float:
    return cost.joules if in_joules and cost.joules is not None else cost.cpu_seconds


def _candidates(manifest: Manifest) -> Iterator[Block]:
    cascades = [c for c in manifest.candidates if c.get("kind") == "cascade"]
    variants = [c for c in manifest.candidates if c.get("kind") != "cascade"]
    if variants:
        yield Heading("Every candidate")
        yield Table(("candidate", "outcome", "passes"), tuple(_candidate(candidate) for candidate in variants), words=3)
        left_out = [(str(c["name"]), c["known"]) for c in variants if c.get("known")]
        if left_out:
            yield Bullets(
                tuple(f"Known of {name}: {_listed(known, manifest.accuracy_name)}." for name, known in left_out)
            )
    if cascades:
        rated = Table(
            ("cascade", "outcome", "escalates", "accuracy, validation", "accuracy, test", "CPU-s/1k", "J/1k"),
            tuple(_rated(candidate) for candidate in cascades),
            words=2,
        )
        yield Folded(f"Cascades that were rated: {len(cascades)}", rated)


def _candidate(candidate: dict[str, Any]) -> tuple[str, ...]:
    passes = " → ".join(made.partition(":")[0] for made in candidate.get("lineage", ()))
    return (str(candidate["name"]), _outcome(candidate), passes or NONE)


def _listed(known: dict[str, Any], accuracy_name: str) -> str:
    named = {name.replace("_", " ").replace("accuracy", accuracy_name): value for name, value in known.items()}
    return ", ".join(f"{name} {compact(value)}" for name, value in named.items())


def _rated(candidate: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(candidate["name"]),
        _outcome(candidate),
        _share(candidate.get("escalated_share")),
        _shown(candidate.get("accuracy"), ".4f"),
        _shown(candidate.get("test", {}).get("accuracy"), ".4f"),
        _shown(candidate.get("cpu_seconds_per_1k"), ".3f"),
        _shown(candidate.get("joules_per_1k"), ".2f"),
    )


def _outcome(candidate: dict[str, Any]) -> str:
    if "reason" in candidate:
        kept = "published, no operating point" if candidate.get("published") else "left out"
        return f"{kept}: {candidate['reason']}"
    return "published" if candidate.get("published") else "left out"


def _predictor(manifest: Manifest, peers: Sequence[Manifest]) -> Iterator[Block]:
    groups = comparable(peers)
    wanted = {(manifest.target_cpu.model, v.evidence.energy_source) for v in manifest.variants}
    near = {setting: rows for setting, rows in groups.items() if (setting.cpu, setting.energy_source) in wanted}
    fitted = judged_fits(near)
    yield Heading("Joules predicted from MACs and parameters")
    if not fitted:
        yield Text("Too few comparable variants in the store (same CPU, energy source and precision).")
        return
    rows = []
    for setting, fit in fitted.items():
        p = fit.predictor
        terms = ((p.fixed, ""), (p.per_gmac, " · GMACs"), (p.per_million_parameters, " · million parameters"))
        formula = " + ".join(f"{factor:.3g}{of}" for factor, of in terms if factor) or "0"
        apart = _share(fit.leave_family_out)
        errors = (f"{fit.leave_one_out:.1%}", f"{fit.leave_one_out_worst:.1%}", apart)
        ranked = _shown(indicator(near[setting]), ".2f")
        rows.append((_setting(setting), formula, f"{fit.rows} of {fit.families}", *errors, ranked))
    yield Text(
        "Joules per 1,000 texts, by least squares on relative errors, no coefficient below 0, over one version of "
        "every family in the store that compares: same CPU, energy source and precision. The error is that of variants "
        "(or whole families) that the fit has not seen, nor another one of the same family and size. The last column "
        "says how well the indicator MACs per parameter alone puts the variants in the order of their joules "
        "(Spearman's rank correlation, 1 is perfect)."
    )
    columns = (
        "variants", "J per 1,000 texts =", "variants of families", "mean error, variant unseen", "worst",
        "mean error, family unseen", "MACs per parameter ranks",
    )  # fmt: skip
    yield Table(columns, tuple(rows), words=2)
    yield plots.predicted_against_measured([(_setting(s), held_out(near[s])) for s in fitted])


def _setting(setting: Setting) -> str:
    return f"{setting.precision}, {setting.energy_source}"


def _origin(manifest: Manifest) -> Iterator[Block]:
    cpu = manifest.target_cpu
    facts = [
        f"CPU: {cpu.model}; 8-bit dot products {'yes' if cpu.vnni else 'no'}, 7-bit weights "
        f"{'yes' if cpu.reduce_range else 'no'}; flags {' '.join(cpu.flags) or 'none known'}.",
        f"Data digest: SHA-256 {manifest.dataset_sha256}.",
        *(f"Data: {note}." for note in manifest.recipe.get("data_notes", ())),
        "Libraries: " + ", ".join(f"{name} {version}" for name, version in manifest.libraries.items()) + ".",
    ]
    yield Heading("Data, versions, recipe")
    yield Bullets(tuple(facts))
    settings = manifest.recipe.get("settings")
    if settings:
        yield Folded("Recipe, every setting", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _answers(manifest: Manifest) -> str:
    return "one real number" if manifest.regression else f"{len(manifest.labels)} labels"


def _forms(variant: Variant) -> str:
    costs: dict[str, float] = variant.notes.get("form_cpu_seconds_per_1k_of_2_layers", {})
    return ", ".join(f"{form} {cost:.3f}" for form, cost in costs.items()) or "one form only"


def _estimate(of: Estimate | None) -> str:
    return NONE if of is None else f"{of.value:.4f} [{of.lower:.4f}, {of.upper:.4f}]"


def _share(of: float | None) -> str:
    return NONE if of is None else f"{of:.1%}"


def _part(part: float | None, whole: float | None) -> str:
    return NONE if part is None or whole is None else _share(part / whole)


def _shown(value: Any, form: str) -> str:
    return NONE if value is None else format(value, form)
