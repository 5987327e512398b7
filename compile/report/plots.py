"""The report's plots, by matplotlib: as SVG that follows the page's colours and as PNG; equal data, equal bytes."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from compile.report.document import Plot
from compile.report.figures import Way, compact, pareto_front
from compile.report.style import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_MARKERS = {"variant": ("o", "main"), "cascade": ("D", "second"), "reference": ("s", "faint")}
_KINDS = {"variant": "variant", "cascade": "cascade", "reference": "fp32 teacher"}
# Narrow, so that its letters stay readable at the width of a phone.
_WIDTH_INCHES = 4.3
_BAR_INCHES = 0.3
_WIDE = 20
"""Costs that lie farther apart than this factor get a logarithmic axis."""
Place = tuple[float, float, Literal["left", "center", "right"]]
"""Where a name stands beside its point: points to the right, points up, the side of the text that it hangs by."""
_BESIDE: tuple[Place, ...] = (
    (7, 4, "left"), (-7, 4, "right"), (7, -11, "left"), (-7, -11, "right"), (0, 9, "center"), (0, -17, "center"),
)  # fmt: skip


def accuracy_against_cost(ways: Sequence[Way], cost_name: str, accuracy_name: str) -> Plot:
    """Every way to answer, with its lower bound, and the front: what no other way beats in both."""

    def draw(axes: Axes) -> None:
        for kind, (marker, colour) in _MARKERS.items():
            of_kind = [way for way in ways if way.kind == kind]
            if not of_kind:
                continue
            costs, accuracies = [way.cost for way in of_kind], [way.accuracy * 100 for way in of_kind]
            below = [max(0.0, way.accuracy - way.accuracy_lower) * 100 for way in of_kind]
            axes.errorbar(
                costs, accuracies, yerr=[below, [0.0] * len(below)], fmt=marker, color=LIGHT[colour], capsize=3,
                markersize=5, elinewidth=1, label=_KINDS[kind],
            )  # fmt: skip
        front = pareto_front(ways)
        axes.plot([w.cost for w in front], [w.accuracy * 100 for w in front], color=LIGHT["main"], lw=1, label="front")
        axes.set_xlabel(cost_name)
        axes.set_ylabel(f"test {accuracy_name}, % (bar: 95% bound)")
        if max(way.cost for way in ways) > _WIDE * min(way.cost for way in ways):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        else:
            axes.set_xlim(left=0)
        axes.margins(x=0.12, y=0.12)
        _legend_below(axes, columns=4)
        _name_points(axes, ways, front)

    listed = ", ".join(f"{w.name} {w.accuracy:.1%} at {w.cost:.2f}" for w in ways)
    return _plot("accuracy-against-joules", f"Test {accuracy_name} against {cost_name}: {listed}", draw, 3.8)


def amount_by_pass(costs: Sequence[tuple[str, float]], unit: str) -> Plot:
    """(pass, what it cost in all) as bars, in the order given."""

    def draw(axes: Axes) -> None:
        bars = axes.barh([name for name, _ in costs], [amount for _, amount in costs], color=LIGHT["main"], height=0.65)
        axes.bar_label(bars, [compact(amount) for _, amount in costs], padding=3, color=LIGHT["ink"])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.15)
        axes.set_xlabel(unit)

    listed = ", ".join(f"{name} {amount:.0f}" for name, amount in costs)
    return _plot("joules-by-pass", f"{unit} by pass: {listed}", draw, 0.9 + _BAR_INCHES * len(costs))


def time_by_length(series: Sequence[tuple[str, Sequence[tuple[int, float]]]], rows: int) -> Plot:
    """CPU milliseconds a text over its length in tokens, batches of `rows` rows; one line a variant."""
    colours = [LIGHT["faint"], LIGHT["main"], LIGHT["second"], LIGHT["ink"], LIGHT["muted"]]
    markers = "sovD^<>P*X"

    def draw(axes: Axes) -> None:
        for at, (name, cells) in enumerate(series):
            colour, marker = colours[at % len(colours)], markers[at % len(markers)]
            tokens, times = zip(*cells, strict=True)
            axes.plot(tokens, times, color=colour, marker=marker, markersize=4, lw=1.2, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.set_xlabel("tokens in a text")
        axes.set_ylabel(f"CPU ms a text, {rows} in a batch")
        axes.legend()

    names = ", ".join(name for name, _ in series)
    return _plot("time-by-length", f"CPU milliseconds a text over its tokens for {names}", draw, 3.4)


def predicted_against_measured(groups: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Plot:
    """(measured, predicted) joules per 1,000 texts of every variant in the store, each predicted from all others."""

    def draw(axes: Axes) -> None:
        styles = [("o", "main"), ("D", "second"), ("s", "faint"), ("^", "ink")]
        for at, (name, pairs) in enumerate(groups):
            marker, colour = styles[at % len(styles)]
            axes.plot(
                *zip(*pairs, strict=True),
                ls="",
                marker=marker,
                color=LIGHT[colour],
                markersize=4,
                alpha=0.8,
                label=name,
            )
        most = max(value for _, pairs in groups for pair in pairs for value in pair) * 1.08
        axes.plot([0, most], [0, most], color=LIGHT["muted"], lw=1, ls="--", label="as measured")
        axes.set_xlim(0, most)
        axes.set_ylim(0, most)
        axes.set_xlabel("measured joules per 1,000 texts")
        axes.set_ylabel("predicted by the others")
        axes.legend(loc="upper left")

    count = sum(len(pairs) for _, pairs in groups)
    return _plot("predicted-joules", f"Predicted against measured joules of {count} variants", draw, 3.6)


def _whole(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def _legend_below(axes: Axes, columns: int) -> None:
    _whole(axes).legend(loc="outside lower center", ncols=columns, handletextpad=0.4, columnspacing=1.2)


def _name_points(axes: Axes, named: Sequence[Way], front: Sequence[Way]) -> None:
    """Write each name where it covers least: beside its point, apart from other names, points and lines."""
    # Drawn once so that everything has its place; Agg measures text without a screen.
    _whole(axes).draw_without_rendering()
    to_pixels = axes.transData.transform
    points = to_pixels([(way.cost, way.accuracy * 100) for way in named])
    corners = to_pixels([(way.cost, way.accuracy * 100) for way in front])
    bars = [(to_pixels((way.cost, way.accuracy_lower * 100)), top) for way, top in zip(named, points, strict=True)]
    strokes = [*itertools.pairwise(corners), *bars]
    lines = [one + (other - one) * step / 20 for one, other in strokes for step in range(1, 20)]
    frame = axes.get_window_extent()
    taken: list[Bbox] = []
    for way in sorted(named, key=lambda way: (way.cost, way.name)):
        text = axes.annotate(
            way.name, (way.cost, way.accuracy * 100), (0, 0), textcoords="offset points", fontsize=8.5
        )  # fmt: skip

        def covered(place: Place, text: Annotation = text) -> int:
            box = _stand(text, place)
            outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
            names = sum(box.overlaps(other) for other in taken)
            return int(5 * outside + 4 * names + 3 * _inside(box, points) + min(2, _inside(box, lines)))

        taken.append(_stand(text, min(_BESIDE, key=covered)))


def _stand(text: Annotation, place: Place) -> Bbox:
    """Move a name to a place beside its point; the box it then fills, in pixels."""
    right, up, side = place
    text.xyann = (right, up)
    text.set_horizontalalignment(side)
    return text.get_window_extent()


def _inside(box: Bbox, points: Iterable[Any]) -> int:
    return sum(bool(box.contains(x, y)) for x, y in points)


@contextmanager
def _settled(salt: str) -> Iterator[None]:
    """Matplotlib's own defaults and ours, whatever the user's configuration says; ids of the SVG come from `salt`."""
    import matplotlib

    ours = {
        "svg.hashsalt": salt,
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LIGHT["rule"],
        "grid.linewidth": 0.6,
        "axes.edgecolor": LIGHT["muted"],
        "axes.labelcolor": LIGHT["ink"],
        "text.color": LIGHT["ink"],
        "xtick.color": LIGHT["muted"],
        "ytick.color": LIGHT["muted"],
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(ours)
        yield


def _plot(name: str, alt: str, draw: Callable[[Axes], None], height_inches: float) -> Plot:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _settled(name):
        figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        # Laid out once for both files.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        vector, pixels = io.StringIO(), io.BytesIO()
        figure.savefig(pixels, format="png", dpi=150, metadata={"Software": None})
        figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None})
    return Plot(name, alt, _for_page(vector.getvalue(), name), pixels.getvalue())


def _for_page(svg: str, name: str) -> str:
    """The drawing alone, as wide as its place, in the page's colours, its ids apart from other drawings' ids."""
    drawing = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL).strip()
    for colour, value in LIGHT.items():
        drawing = drawing.replace(value, f"var(--{colour})")
    drawing = re.sub(r'\bid="', f'id="{name}-', drawing)
    drawing = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", drawing)
    end = drawing.index(">")
    return re.sub(r' (?:width|height)="[^"]*"', "", drawing[:end]) + drawing[end:]
