"""A replay's figures as a table, JSON and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from models.store import write_atomic
from server.replay.course import Course
from server.replay.errors import ReplayError
from server.replay.figures import Figures
from server.replay.simulate import Played

GRAMS_PER_KG = 1000.0
HEADINGS = ("policy", "kgCO2e", "kWh", "full", "acc.", "worst", "sw/d", "timing", "oracle")
"""`full`: share of the answers at full quality; `acc.` and `worst`: relative accuracy, mean and of the worst hour;
`sw/d`: switches a day; `timing`: what choosing the hours saved, of always full; `oracle`: the same, of hindsight's."""


def table(figures: Sequence[Figures], title: str) -> Table:
    """One line a policy."""
    found = Table(title=title, padding=(0, 0), box=SIMPLE)
    for name in HEADINGS:
        found.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    dirtiest = max((one.gco2e for one in figures), default=0.0)
    for one in figures:
        found.add_row(
            one.policy,
            f"{one.gco2e / GRAMS_PER_KG:.4g}",
            f"{one.kwh:.4g}",
            f"{one.full_share:.1%}",
            f"{one.relative_accuracy:.1%}",
            f"{one.worst_hour_accuracy:.1%}",
            f"{one.switches_per_day:.2f}",
            f"{one.timing_gco2e / dirtiest:.1%}" if dirtiest else "-",
            "-" if math.isnan(one.of_oracle) or abs(one.of_oracle) < 1e-9 else f"{one.of_oracle:.1%}",
        )
    return found


def write_json(path: Path, course: Course, figures: Sequence[Figures], **more: Any) -> None:
    """Write the figures atomically. Raises ReplayError."""
    tree = {
        "zone": course.zone,
        "start": course.start.isoformat(),
        "days": round(course.days, 3),
        "known_share": round(course.known_share, 6),
        "figures": [one.to_dict() for one in figures],
        **more,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(tree, indent=1).encode() + b"\n")
    except OSError as error:
        raise ReplayError(f"--out: {path}: {error.strerror}; give a path that can be written") from None


def check_plot() -> None:
    """Raises ReplayError where nothing can be plotted."""
    if find_spec("matplotlib") is None:
        raise ReplayError("--plot: needs matplotlib; pip install '.[compile]', or leave --plot out")


def plot(path: Path, course: Course, played: Sequence[Played], frontier: Sequence[Figures] = ()) -> None:
    """Intensity and the dial over the fortnight in which the grid varies the most, and the frontier if there is one.
    Raises ReplayError."""
    check_plot()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = 1 + len(played) + bool(frontier)
    heights = [3, *[1] * len(played), *([4] if frontier else [])]
    figure = pyplot.figure(figsize=(10, 1.2 * sum(heights)), layout="constrained")
    axes = figure.subplots(rows, 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_course(axes[: 1 + len(played)], course, played)
    if frontier:
        _draw_frontier(axes[-1], frontier)
    buffer = BytesIO()
    try:
        figure.savefig(buffer, format=path.suffix.removeprefix(".") or "png")
        write_atomic(path, buffer.getvalue())
    except (OSError, ValueError) as error:
        raise ReplayError(f"--plot: {path}: {error}; give a path such as replay.png or replay.svg") from None
    finally:
        pyplot.close(figure)


def _draw_course(axes: Sequence[Any], course: Course, played: Sequence[Played]) -> None:
    """The intensity, and below it a strip for every policy."""
    from matplotlib.dates import ConciseDateFormatter

    steps = min(len(course), round(14 * 86_400 / course.step_s))
    begin = _liveliest(course, steps)
    window = slice(begin, begin + steps)
    times = course.times()[window]
    axes[0].plot(times, course.grams_per_kwh[window], color="#5b3fa0", linewidth=1)
    axes[0].set_ylabel("gCO2e/kWh")
    axes[0].set_ylim(bottom=0)
    axes[0].set_title(f"{course.zone}: the fortnight in which the grid varies the most (UTC)", fontsize="medium")
    for strip, one in zip(axes[1:], played, strict=True):
        strip.fill_between(times, 1 - one.level[window], step="post", color="#0a7055", alpha=0.6, linewidth=0)
        strip.set_ylim(0, 1)
        strip.set_yticks([0, 1], ["small", "full"])
        strip.set_ylabel(one.name, rotation=0, ha="right", va="center")
    for one in axes:
        one.set_xlim(times[0], times[-1])
        one.tick_params(labelbottom=one is axes[-1])
        one.xaxis.set_major_formatter(ConciseDateFormatter(one.xaxis.get_major_locator()))


def _draw_frontier(axis: Any, frontier: Sequence[Figures]) -> None:
    """What was tried, beside a mix that does not look at the grid."""
    shares = [100 * one.full_share for one in frontier]
    blind = [(one.gco2e + one.timing_gco2e) / GRAMS_PER_KG for one in frontier]
    axis.plot(shares, blind, color="#8a959b", linestyle="--", label="carbon-blind mix")
    kilograms = [one.gco2e / GRAMS_PER_KG for one in frontier]
    axis.plot(shares, kilograms, color="#0a7055", marker="o", label=frontier[0].policy)
    axis.set_xlabel("answers at full quality, %")
    axis.set_ylabel("kgCO2e")
    axis.set_ylim(bottom=0)
    axis.legend()


def _liveliest(course: Course, steps: int) -> int:
    """First step of the stretch of `steps` in which the intensity varies the most."""
    grams = np.nan_to_num(course.grams_per_kwh)
    starts = range(0, max(1, len(course) - steps + 1), max(1, steps // 2))
    return max(starts, key=lambda start: float(grams[start : start + steps].std()))
