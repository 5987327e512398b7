"""The picture of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loadtest.bench.plan import REALISTIC
from loadtest.bench.results import Result, spread

OURS = ("#1b7837", "#7fbf7b")
THEIRS = ("#762a83", "#9970ab", "#c2a5cf", "#8c6bb1", "#998ec3", "#b2abd2")


def draw(result: Result, path: Path) -> None:
    """CPU-seconds per 1,000 requests by contestant and clients with the floor as a line, p99 beside it; PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (cpu, latency) = pyplot.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    _bars(cpu, result, "cpu_seconds_per_1k")
    floor = result.floors[REALISTIC].cpu_seconds_per_1k
    cpu.axhline(floor, color="black", linestyle="--", linewidth=1, label="the floor: raw ONNX Runtime")
    cpu.set_ylim(bottom=floor / 3)
    cpu.set_ylabel("CPU-seconds per 1,000 requests (whole tree)")
    _bars(latency, result, "p99_ms")
    latency.set_ylabel("p99, ms")
    latency.set_ylim(bottom=1)
    handles, labels = cpu.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, dpi=130, format="png")
    unfinished.replace(path)
    pyplot.close(figure)


def _bars(axes: Any, result: Result, figure: str) -> None:
    """Grouped bars, medians of the rounds, logarithmic."""
    names, clients = result.contestants(), result.plan.clients
    width = 0.8 / max(1, len(names))
    colours = {name: OURS[rank % len(OURS)] for rank, name in enumerate(n for n in names if n in result.ours)}
    colours |= {name: THEIRS[rank % len(THEIRS)] for rank, name in enumerate(n for n in names if n not in result.ours)}
    for place, name in enumerate(names):
        for group, count in enumerate(clients):
            found = spread(getattr(load, figure) for load in result.loads(name, REALISTIC, count))
            if found is None:
                continue
            at = group + (place - (len(names) - 1) / 2) * width
            label = name if group == 0 else None
            axes.bar(at, found.median, width * 0.92, color=colours[name], label=label)
    axes.set_yscale("log")
    axes.set_xticks(range(len(clients)), [f"{count} client{'s' if count > 1 else ''}" for count in clients])
    axes.grid(axis="y", which="both", alpha=0.25)
    axes.set_axisbelow(True)
