"""A dashboard's panels, drawn from what a Prometheus answers to their expressions.

Not Grafana: the same expressions, units, legends and places, by matplotlib, for a picture where no Grafana runs. The
picture says so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

LABEL = "drawn by loadtest.board_picture from a Prometheus' answers; Grafana shows the same panels in its own way"
COLOURS = ("#0b7a4f", "#b9770e", "#1d5fa8", "#8a4fa3", "#7d8a83", "#a61b1b", "#2a9d9d", "#5b6b2f")
UNIT_INCHES = (0.62, 0.31)
"""Width and height of one of Grafana's grid units."""


@dataclass(frozen=True)
class Span:
    """Of which time a dashboard is drawn: seconds since the epoch."""

    start_s: float
    end_s: float
    step_s: float
    rate_interval: str
    """What `$__rate_interval` stands for."""


@dataclass(frozen=True)
class Series:
    """One line of a panel."""

    name: str
    times_s: tuple[float, ...]
    values: tuple[float, ...]
    labels: Mapping[str, str] = field(default_factory=dict)


def ask(prometheus: str, panel: dict[str, Any], span: Span) -> list[Series]:
    """The lines of a panel; those without a value are left out. Raises httpx.HTTPError, also for a bad expression."""
    found = []
    for target in panel.get("targets", ()):
        expression = target["expr"].replace("$__rate_interval", span.rate_interval)
        expression = expression.replace("$__range", f"{math.ceil(span.end_s - span.start_s)}s")
        expression = re.sub(r"\$(namespace|job)\b", ".*", expression)
        reply = httpx.get(
            f"{prometheus}/api/v1/query_range",
            params={"query": expression, "start": span.start_s, "end": span.end_s, "step": span.step_s},
            timeout=30,
        )
        reply.raise_for_status()
        for row in reply.json()["data"]["result"]:
            pairs = [(float(at), float(value)) for at, value in row["values"] if math.isfinite(float(value))]
            if pairs:
                times, values = zip(*pairs, strict=True)
                name = legend(target.get("legendFormat", ""), row["metric"])
                found.append(Series(name, times, values, row["metric"]))
    return found


def legend(template: str, labels: dict[str, str]) -> str:
    """`{{label}}` filled in, as Grafana does."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), template).strip() or "value"


def shown(unit: str) -> Callable[[float], str]:
    """How a value of one of Grafana's units is written on an axis."""
    if unit == "percentunit":
        return lambda value: f"{value * 100:.3g}%"
    if unit.startswith("suffix:"):
        return lambda value: f"{value:.4g} {unit.removeprefix('suffix:')}"
    suffix = {"watt": "W", "joule": "J", "s": "s", "reqps": "/s", "bytes": "B", "kwatth": "kWh", "massg": "g"}
    unit = suffix.get(unit, "")
    return lambda value: f"{_prefixed(value)}{unit}"


def _prefixed(value: float) -> str:
    if value == 0:
        return "0 "
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")):
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.1g} "


def draw(dashboard: Path, prometheus: str, span: Span, out: Path, rows: int | None = None) -> None:
    """Draw a dashboard's JSON to a PNG; with `rows` only what lies in its first so many grid units."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    board = json.loads(dashboard.read_text())
    panels = [one for one in board["panels"] if rows is None or one["gridPos"]["y"] + one["gridPos"]["h"] <= rows]
    units = max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in panels)
    width, height = 24 * UNIT_INCHES[0], units * UNIT_INCHES[1] + 0.7
    picture = pyplot.figure(figsize=(width, height), facecolor="#f4f6f3")
    picture.text(0.012, 1 - 0.32 / height, board["title"], fontsize=13, weight="bold", color="#14201a")
    picture.text(0.988, 1 - 0.32 / height, LABEL, fontsize=7.5, color="#55625b", ha="right")
    for panel in panels:
        place = panel["gridPos"]
        left, right = place["x"] / 24, (place["x"] + place["w"]) / 24
        top = 1 - (0.55 + place["y"] * UNIT_INCHES[1]) / height
        bottom = top - place["h"] * UNIT_INCHES[1] / height
        if panel["type"] == "row":
            picture.text(left + 0.012, (top + bottom) / 2, panel["title"], fontsize=9.5, weight="bold", color="#0b6b45")
            continue
        box = (left + 0.006, bottom + 0.06 / height, right - left - 0.012, top - bottom - 0.12 / height)
        picture.add_artist(_card(box))
        _panel(picture, box, panel, ask(prometheus, panel, span), span, height)
    picture.savefig(out, dpi=92)
    pyplot.close(picture)


def _card(box: tuple[float, float, float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(box[:2], box[2], box[3], facecolor="white", edgecolor="#dde3de", linewidth=0.8, zorder=-1)


def _panel(picture: Any, box: tuple[float, float, float, float], panel: dict[str, Any], series: Sequence[Series],
           span: Span, height: float) -> None:  # fmt: skip
    left, bottom, wide, high = box
    defaults = panel["fieldConfig"]["defaults"]
    written = shown(defaults.get("unit", "short"))
    picture.text(
        left + 0.006, bottom + high - 0.2 / height, panel["title"], fontsize=8.5, weight="bold", color="#14201a"
    )
    if panel["type"] == "stat":
        text = "no data" if not series else written(series[0].values[-1])
        if series and panel.get("options", {}).get("textMode") == "name":
            text = series[0].name
        size = min(17.0, 1150 * wide / len(text))
        picture.text(left + wide / 2, bottom + high * 0.36, text, fontsize=size, ha="center", color="#0b6b45")
        return
    axis = picture.add_axes((left + 0.042, bottom + 0.62 / height, wide - 0.055, high - 0.95 / height))
    kinds = dict(zip(dict.fromkeys(one.name for one in series), COLOURS * 4, strict=False))
    if panel["type"] == "barchart":
        _bars(axis, panel, series, kinds)
    else:
        _curves(axis, defaults, series, kinds, span)
    low, top = axis.get_ylim()
    axis.set_ylim(min(0.0, low), top + 0.05 * (top - min(0.0, low)))
    bare = defaults.get("unit", "short").startswith("suffix:")  # too long beside each number
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}" if bare else written(value))
    axis.tick_params(labelsize=6.5, colors="#55625b", length=2)
    axis.grid(axis="y", color="#e6ebe7", linewidth=0.6)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#c5d0c9")
    if not series:
        axis.text(0.5, 0.5, "no data", transform=axis.transAxes, ha="center", fontsize=9, color="#55625b")
        return
    handles = [_swatch(colour) for colour in kinds.values()]
    columns = max(1, min(4, round(wide * 24 / 2.4)))
    axis.legend(
        *(handles[:8], list(kinds)[:8]),
        loc="upper left",
        bbox_to_anchor=(left + 0.004, bottom + 0.44 / height),
        bbox_transform=picture.transFigure,
        ncol=columns,
        fontsize=6.5,
        frameon=False,
        handlelength=0.9,
        columnspacing=1.0,
        labelspacing=0.2,
    )


def _bars(axis: Any, panel: dict[str, Any], series: Sequence[Series], kinds: Mapping[str, str]) -> None:
    """The latest value of each series, in groups along the label that the panel's table has in its rows."""
    across = next(one["options"]["rowField"] for one in panel["transformations"] if one["id"] == "groupingToMatrix")
    places = sorted({float(one.labels[across]) for one in series})
    wide = 0.8 / max(1, len(kinds))
    for number, (name, colour) in enumerate(kinds.items()):
        mine = [one for one in series if one.name == name]
        at = [places.index(float(one.labels[across])) + (number - (len(kinds) - 1) / 2) * wide for one in mine]
        axis.bar(at, [one.values[-1] for one in mine], wide, color=colour)
    axis.set_xticks(range(len(places)), [f"{place:g}" for place in places])


def _curves(
    axis: Any, defaults: dict[str, Any], series: Sequence[Series], kinds: Mapping[str, str], span: Span
) -> None:
    stacked = defaults.get("custom", {}).get("stacking", {}).get("mode") == "normal"
    if stacked and series:
        times = sorted({at for one in series for at in one.times_s})
        layers = [[dict(zip(one.times_s, one.values, strict=True)).get(at, 0.0) for at in times] for one in series]
        axis.stackplot(
            [at - span.start_s for at in times], layers, colors=[kinds[one.name] for one in series], alpha=0.85
        )
    for one in series if not stacked else ():
        axis.plot([at - span.start_s for at in one.times_s], one.values, color=kinds[one.name], linewidth=1.3)
    axis.set_xlim(0, span.end_s - span.start_s)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value / 60:.0f} min" if value else "0")
    axis.xaxis.set_major_locator(_minutes())


def _minutes() -> Any:
    from matplotlib.ticker import MultipleLocator

    return MultipleLocator(60)


def _swatch(colour: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour)
