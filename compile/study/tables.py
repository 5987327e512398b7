"""The study's tables, as Markdown, from the cells' figures alone. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compile.report.document import Table
from compile.study.plan import FULL, HALF_UNITS, INT8, STEPS
from compile.study.published import BERT, Published

Figures = Mapping[str, Any]
PLAIN = {"torchscript": "fp32", "torchscript-int8": "int8"}
"""Plain graph of the unpruned model -> its precision."""
_NONE = "–"
_TEACHER = "fp32"


def beside_published(cells: Sequence[Figures]) -> Table:
    """Percent of the fp32 teacher's accuracy / size / time of each step: as published for BERT, and every cell's."""
    rows = [("published: BERT", "", *(_published(row) for row in BERT), _NONE, _NONE)]
    for cell in cells:
        name = f"{cell['model']} on {cell['set']}"
        if "no_result" in cell:
            rows.append((name, f"no result: {cell['no_result']}", *[_NONE] * 5))
            continue
        steps = [_percents(cell, step) for step in STEPS]
        rows.append((name, _teacher(cell), *steps, _percents(cell, INT8[STEPS[-1]]), _best(cell)))
    steps_named = [row.step for row in BERT]
    columns = ("model and set", "teacher", *steps_named, f"{steps_named[-1]}, int8", "our best at 90 %: accuracy/time")
    return Table(columns, tuple(rows), words=2)


def every_variant(cells: Sequence[Figures]) -> Table:
    """One row a variant: what it keeps, what it weighs, costs and emits, and what making it cost."""
    rows: list[tuple[str, ...]] = []
    for cell in cells:
        for name, shown in cell.get("variants", {}).items():
            whole = cell["variants"][_TEACHER]
            rows.append((
                f"{cell['model']} on {cell['set']}", name, f"{shown['accuracy']:.1%} (≥ {shown['accuracy_lower']:.1%})",
                f"{_matthews(shown)}", f"{shown['relative_accuracy']:.1%}",
                _part(shown["size_bytes"], whole["size_bytes"]),
                _part(shown["cpu_seconds_per_1k"], whole["cpu_seconds_per_1k"]),
                _part(shown["joules_per_1k"], whole["joules_per_1k"]),
                f"{shown['compile_cpu_seconds']:,.0f}",
            ))  # fmt: skip
        rows += [(f"{cell['model']} on {cell['set']}", name, why, *[_NONE] * 6) for name, why in _left_out(cell)]
    columns = (
        "model and set", "variant", "test accuracy", "Matthews", "of the teacher", "size", "time", "emissions",
        "compile CPU-s",
    )  # fmt: skip
    return Table(columns, tuple(rows), words=3)


def units_against_layers(cells: Sequence[Figures]) -> Table:
    """Half the heads and units pruned, against layers removed at equal joules.

    Layer removal at the pruned model's joules lies between two measured models (2, 4 and all 6 layers): its accuracy is
    taken on the straight line between them.
    """
    rows = []
    for cell in cells:
        variants = cell.get("variants", {})
        pruned = variants.get(HALF_UNITS)
        ladder = [variants[name] for name in (INT8["cut-2"], INT8["cut-4"], FULL) if name in variants]
        if pruned is None or len(ladder) < 2:
            continue
        kept = at_cost([(one["cpu_seconds_per_1k"], one["accuracy"]) for one in ladder], pruned["cpu_seconds_per_1k"])
        whole = variants[_TEACHER]
        rows.append((
            f"{cell['model']} on {cell['set']}",
            f"{pruned['accuracy']:.1%}", _part(pruned["cpu_seconds_per_1k"], whole["cpu_seconds_per_1k"]),
            f"{kept:.1%}", f"{pruned['accuracy'] / kept:.1%}",
        ))  # fmt: skip
    columns = ("model and set", "units halved: accuracy", "joules", "layers removed, equal joules", "kept of it")
    return Table(columns, tuple(rows))


def beside_torchscript(found: Figures) -> Table:
    """What each graph costs, as a share of the plain graph of its precision and of the plain fp32 graph."""
    spent: Mapping[str, float] = found["cpu_seconds_per_1k"]
    plain = {precision: spent[name] for name, precision in PLAIN.items()}
    rows = []
    for name, cost in spent.items():
        precision = found["precisions"][name]
        same = plain.get(precision)
        share = _NONE if same is None else f"{cost / same:.3f}"
        rows.append((name, precision, f"{cost:.3f}", share, f"{cost / plain['fp32']:.3f}"))
    columns = (f"{found['family']}: graph", "precision", "CPU-s per 1,000", "of TorchScript's", "of TorchScript's fp32")
    return Table(columns, tuple(rows), words=2)


def at_cost(ladder: Sequence[tuple[float, float]], cost: float) -> float:
    """Accuracy at `cost` on the straight lines between (cost, accuracy) points; the ends count beyond them."""
    points = sorted(ladder)
    if cost <= points[0][0]:
        return points[0][1]
    for (below, low), (above, high) in itertools.pairwise(points):
        if cost <= above:
            return low + (high - low) * (cost - below) / (above - below)
    return points[-1][1]


def _published(row: Published) -> str:
    return f"{row.accuracy_percent:.1f}/{row.size_percent:.1f}/{row.time_percent:.1f}"


def _percents(cell: Figures, name: str) -> str:
    shown, whole = cell["variants"].get(name), cell["variants"][_TEACHER]
    if shown is None:
        return _NONE
    parts = (shown["relative_accuracy"], *(shown[of] / whole[of] for of in ("size_bytes", "cpu_seconds_per_1k")))
    return "/".join(f"{100 * part:.1f}" for part in parts)


def _teacher(cell: Figures) -> str:
    shown = cell["variants"][_TEACHER]
    return f"{shown['accuracy']:.1%} of {shown['test_rows']:,}; {cell['size']}"


def _best(cell: Figures) -> str:
    """The cheapest operating point with at least 90 % of the teacher's accuracy."""
    whole = cell["variants"][_TEACHER]["cpu_seconds_per_1k"]
    able = [point for point in cell["points"] if point["relative_accuracy"] >= 0.9]
    if not able:
        return _NONE
    best = min(able, key=lambda point: point["cpu_seconds_per_1k"])
    return f"{100 * best['relative_accuracy']:.1f}/{100 * best['cpu_seconds_per_1k'] / whole:.1f} ({best['name']})"


def _matthews(shown: Figures) -> str:
    found = shown.get("matthews")
    return _NONE if found is None else f"{found['value']:.2f}"


def _left_out(cell: Figures) -> Iterator[tuple[str, str]]:
    variants = cell.get("variants", {})
    return ((name, f"left out: {why}") for name, why in cell.get("failed", {}).items() if name not in variants)


def _part(part: float | None, whole: float | None) -> str:
    return _NONE if part is None or whole is None else f"{part / whole:.1%}"
