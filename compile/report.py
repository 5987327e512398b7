"""The report of a published version: a table, the evidence in words, and accuracy plotted against joules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
from models.manifest import Manifest, Variant
from models.store import Version

PLOT = "accuracy-against-joules.png"


def write_report(version: Version, path: Path) -> Path:
    """Write `path` (Markdown) and the plot beside it; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _plot(version.manifest, path.parent / PLOT)
    path.write_text(render(version), encoding="utf-8")
    return path


def render(version: Version) -> str:
    """The report as Markdown."""
    manifest = version.manifest
    lines = [
        f"# {manifest.family} {version.name}",
        "",
        f"Compiled {manifest.created_utc} for {manifest.target_cpu.model}; "
        f"{len(manifest.labels)} labels, {manifest.variants[0].evidence.test_rows} test texts.",
        "",
        *table(manifest),
        "",
        f"![accuracy against joules]({PLOT})",
        "",
        *_notes(manifest),
    ]
    failed = [c for c in manifest.candidates if "reason" in c]
    if failed:
        lines += ["", "## Candidates that failed", "", *(f"- {c['name']}: {c['reason']}" for c in failed)]
    return "\n".join(lines) + "\n"


def table(manifest: Manifest) -> list[str]:
    """One row a variant, as a Markdown table."""
    full = next(v for v in manifest.variants if v.name == manifest.points[0].variant).evidence.cpu_seconds_per_1k
    lines = [
        "| variant | layers | precision | accuracy (95 % at least) | of teacher | agrees with fp32 | MB "
        "| CPU-s/1k | of full | J/1k | break-even requests |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for variant in manifest.variants:
        e = variant.evidence
        cells = [
            variant.name + (" (reference)" if variant.reference else ""),
            str(variant.layers),
            variant.precision,
            f"{e.accuracy:.4f} ({e.accuracy_lower:.4f})",
            f"{e.relative_accuracy:.1%}",
            _shown(e.agreement_with_fp32, ".2%"),
            f"{e.size_bytes / 1e6:.1f}",
            f"{e.cpu_seconds_per_1k:.3f}",
            f"{e.cpu_seconds_per_1k / full:.0%}",
            _shown(e.joules_per_1k, ".2f"),
            _shown(e.break_even_requests, ",d"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def figures(manifest: Manifest) -> dict[str, Any]:
    """The report's figures as plain data, small enough to keep beside the code."""
    left_out = {"latency", "parameters", "macs_per_text"}
    return {
        "family": manifest.family,
        "command": _command(manifest.family),
        "created_utc": manifest.created_utc,
        "cpu": manifest.target_cpu.model,
        "dataset_sha256": manifest.dataset_sha256,
        "data_notes": manifest.recipe.get("data_notes", []),
        "libraries": manifest.libraries,
        "variants": {
            v.name: {
                "layers": v.layers,
                "precision": v.precision,
                "graph_form": v.graph_form,
                **v.evidence.model_dump(mode="json", exclude=left_out),
            }
            for v in manifest.variants
        },
        "failed": {c["name"]: c["reason"] for c in manifest.candidates if "reason" in c},
    }


def _command(family: str) -> str | None:
    """The command that compiles a family whose recipe comes with the project."""
    known = (Path(models.__file__).parent / "recipes" / f"{family}.yaml").is_file()
    return f"jouleserve-compile run models/recipes/{family}.yaml" if known else None


def _notes(manifest: Manifest) -> list[str]:
    e = manifest.variants[0].evidence
    source = e.energy_source or "unmeasured"
    band = "" if e.energy_relative_uncertainty is None else f", ±{e.energy_relative_uncertainty:.0%}"
    lines = [
        f"- Joules are dynamic (above idling), source `{source}`{band}; CPU time is of one thread, batches as a "
        "busy server forms them, the least of several interleaved repeats.",
        "- Break-even: requests after which the joules spent on compiling the variant (its teacher included) are saved "
        "against serving the fp32 teacher.",
        f"- Graph form: {', '.join(f'{v.name} {v.graph_form}' for v in manifest.variants)}; "
        f"probed, CPU-s/1k of a 2-layer slice: {_forms(manifest.variants[0])}.",
    ]
    for variant in manifest.variants:
        if variant.notes.get("fp32_products"):
            lines.append(f"- {variant.name}: kept in fp32: {', '.join(variant.notes['fp32_products'])}.")
    for note in manifest.recipe.get("data_notes", ()):
        lines.append(f"- Data: {note}.")
    lines.append(f"- Data digest `{manifest.dataset_sha256[:16]}…`; " + _libraries(manifest.libraries))
    return lines


def _forms(variant: Variant) -> str:
    costs: dict[str, float] = variant.notes.get("form_cpu_seconds_per_1k_of_2_layers", {})
    return ", ".join(f"{form} {cost:.3f}" for form, cost in costs.items()) or "one form only"


def _libraries(libraries: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in libraries.items()) + "."


def _shown(value: Any, form: str) -> str:
    return "–" if value is None else format(value, form)


def _plot(manifest: Manifest, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = all(v.evidence.joules_per_1k is not None for v in manifest.variants)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for variant in manifest.variants:
        e = variant.evidence
        cost = (e.joules_per_1k or 0.0) if measured else e.cpu_seconds_per_1k
        below = [[max(0.0, e.accuracy - e.accuracy_lower) * 100], [0.0]]
        marker, colour = ("s", "0.55") if variant.reference else ("o", "C0")
        axes.errorbar([cost], [e.accuracy * 100], yerr=below, fmt=marker, color=colour, capsize=3)
        label = f"{variant.name} ({variant.layers} layers, {variant.precision})"
        axes.annotate(label, (cost, e.accuracy * 100), (6, 6), textcoords="offset points", fontsize=8)
    source = manifest.variants[0].evidence.energy_source
    axes.set_xlabel(f"dynamic joules per 1,000 texts ({source})" if measured else "CPU-seconds per 1,000 texts")
    axes.set_ylabel("test accuracy, % (bar: 95 % lower bound)")
    axes.set_title(manifest.family)
    axes.set_xlim(left=0)
    axes.margins(x=0.2, y=0.15)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
