"""What a dashboard consists of, and how Grafana is told: rows of panels of expressions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import barchart, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TimeZoneBrowser,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24
HEIGHT = 8
MACHINE = '{domain!~"psys|core|uncore"}'
"""Domains that do not overlap: psys, core and uncore hold joules of package."""
ANSWERED = '{variant!="",outcome=~"ok|error|cancelled"}'
"""What an operating point computed."""


RELEASE = 'namespace=~"$namespace",job=~"$job"'
"""The releases that the viewer chose: a Prometheus may know several, whose figures are not to be added up unseen."""
SERVING = "and on (namespace, job, instance) (jouleserve_replicas > 0)"
"""Of machines that serve: one that replicas left keeps what it was told last of grid, dial and budget."""
GRAMS_UNIT, INTENSITY_UNIT = "massg", "suffix:gCO2e/kWh"


@dataclass(frozen=True)
class Query:
    """An expression in PromQL, of all releases; `legend` may name labels as `{{label}}`."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Bars:
    """Which labels of a query's answer a bar chart stands on: groups of bars along `across` (whole numbers), one bar
    in each for every value of `beside`."""

    across: str
    beside: str


@dataclass(frozen=True)
class Panel:
    """Curves over time, or the latest value of each query: in large print (`single`; with `named`, its legend in place
    of the value), or of its one query as `bars`."""

    title: str
    text: str
    unit: str
    queries: tuple[Query, ...]
    single: bool = False
    named: bool = False
    stacked: bool = False
    bars: Bars | None = None


@dataclass(frozen=True)
class Board:
    """A dashboard: titled rows of panels that share the row's width."""

    uid: str
    title: str
    text: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]

    def queries(self) -> list[Query]:
        """Every query of it."""
        return [query for _, panels in self.rows for panel in panels for query in panel.queries]


def to_json(board: Board) -> str:
    """The dashboard as Grafana takes it."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.text)
        .tags(["jouleserve"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone(TimeZoneBrowser)
        .editable()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_releases_by("namespace", "jouleserve_build_info"))
        .with_variable(_releases_by("job", 'jouleserve_build_info{namespace=~"$namespace"}'))
    )
    for title, panels in board.rows:
        built = built.with_row(dashboard.Row(title))
        for panel in panels:
            built = built.with_panel(_panel(panel, COLUMNS // len(panels)))
    return JSONEncoder(sort_keys=True, indent=1).encode(built.build()) + "\n"


def scoped(expr: str) -> str:
    """The expression, of the chosen releases alone."""
    begun = re.sub(r"(jouleserve_[a-z0-9_]+)\{", rf"\1{{{RELEASE},", expr)
    return re.sub(r"(jouleserve_[a-z0-9_]+)(?![a-z0-9_{])", rf"\1{{{RELEASE}}}", begun)


def _releases_by(label: str, series: str) -> Any:
    """A choice among the values of a label; all at first, and series that do not have it."""
    return (
        dashboard.QueryVariable(label)
        .datasource(SOURCE)
        .query({"query": f"label_values({series}, {label})", "refId": label})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all"))
    )


def _panel(panel: Panel, width: int) -> Any:
    latest = panel.single or panel.bars is not None
    made: Any = _single(panel.named) if panel.single else _bars(panel.bars) if panel.bars else _curves(panel.stacked)
    made = made.title(panel.title).description(panel.text).unit(panel.unit).datasource(SOURCE)
    for letter, query in zip(ascii_uppercase, panel.queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(scoped(query.expr)).datasource(SOURCE)
        target = target.legend_format(query.legend)
        if panel.bars:
            target = target.format(PromQueryFormat.TABLE)
        made = made.with_target(target.instant() if latest else target.range())
    return made.span(width).height(HEIGHT // 2 if panel.single else HEIGHT)


def _single(named: bool) -> Any:
    made = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return made.text_mode(BigValueTextMode.NAME) if named else made


def _bars(bars: Bars) -> Any:
    """The answer as a table, its rows in the order of the numbers; words again then, as the axis takes no others."""
    steps: tuple[tuple[str, dict[str, object]], ...] = (
        ("convertFieldType", _converted(bars.across, "number")),
        ("sortBy", {"fields": {}, "sort": [{"field": bars.across}]}),
        ("convertFieldType", _converted(bars.across, "string")),
        ("groupingToMatrix", {"rowField": bars.across, "columnField": bars.beside, "valueField": "Value"}),
    )
    made = barchart.Panel().legend(_legend()).x_field(f"{bars.across}\\{bars.beside}").axis_label(bars.across).min(0)
    for name, options in steps:
        made = made.with_transformation(DataTransformerConfig(id_val=name, options=options))
    return made


def _converted(field: str, to: str) -> dict[str, object]:
    return {"fields": {}, "conversions": [{"targetField": field, "destinationType": to}]}


def _legend() -> Any:
    return (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )


def _curves(stacked: bool) -> Any:
    made = (
        timeseries.Panel()
        .legend(_legend())
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .min(0)
        .line_width(1)
        .fill_opacity(40 if stacked else 5)
    )
    return made.stacking(common.StackingConfig().mode(StackingMode.NORMAL)) if stacked else made


def rate(metric: str, by: Sequence[str] = (), labels: str = "") -> str:
    """Increase a second of a counter, added up over machines by the labels in `by`."""
    return f"{over('sum', by)} (rate({metric}{labels}[$__rate_interval]))"


def grown(metric: str, by: Sequence[str] = ()) -> str:
    """Increase of a counter in all the time that the dashboard shows, added up over machines."""
    return f"{over('sum', by)} (increase({metric}[$__range]))"


def quantile(share: float, histogram: str, by: Sequence[str] = (), labels: str = "") -> str:
    """A quantile of a histogram over all machines."""
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', ('le', *by), labels)})"


def told(metric: str, by: Sequence[str] = ()) -> str:
    """What the conductor tells all machines alike, once, by the labels in `by`."""
    return f"{over('max', by)} ({metric} {SERVING})"


def over(function: str, by: Sequence[str]) -> str:
    """`sum by (a, b)`, or `sum` alone."""
    return f"{function} by ({', '.join(by)})" if by else function


OWN = '{scope!="other"}'
"""Grams of the service: its requests, overhead and the machine's idling; other programs have their own."""
KNOWN = f"and on () {told('jouleserve_grid_intensity_grams_per_kwh')}"
"""While the grid's intensity is known: of other times no grams are counted, which does not make them none."""
GRAMS = f"({rate('jouleserve_carbon_grams_total', labels=OWN)} {KNOWN})"
ANSWERS = rate("jouleserve_requests_total", labels='{outcome=~"ok|cached"}')
PER_REQUEST = f"({ANSWERS} > 0)"
"""Texts that got an answer, a second, where there were any: nothing is so many joules or grams a request of none."""
