"""What a dashboard consists of, and how Grafana is told: rows of panels of expressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TimeZoneBrowser,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24
HEIGHT = 8
MACHINE = '{domain!~"psys|core|uncore"}'
"""Domains that do not overlap: psys, core and uncore hold joules of package."""
ANSWERED = '{variant!="",outcome=~"ok|error|cancelled"}'
"""What an operating point computed."""


@dataclass(frozen=True)
class Query:
    """An expression in PromQL; `legend` may name labels as `{{label}}`."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """Curves over time, or (`single`) the latest value of each query in large print."""

    title: str
    text: str
    unit: str
    queries: tuple[Query, ...]
    single: bool = False
    stacked: bool = False


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
    )
    for title, panels in board.rows:
        built = built.with_row(dashboard.Row(title))
        for panel in panels:
            built = built.with_panel(_panel(panel, COLUMNS // len(panels)))
    return JSONEncoder(sort_keys=True, indent=1).encode(built.build()) + "\n"


def _panel(panel: Panel, width: int) -> Any:
    made: Any = _single() if panel.single else _curves(panel.stacked)
    made = made.title(panel.title).description(panel.text).unit(panel.unit).datasource(SOURCE)
    for letter, query in zip(ascii_uppercase, panel.queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend).datasource(SOURCE)
        made = made.with_target(target.instant() if panel.single else target.range())
    return made.span(width).height(HEIGHT // 2 if panel.single else HEIGHT)


def _single() -> Any:
    return stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def _curves(stacked: bool) -> Any:
    legend = (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    made = (
        timeseries.Panel()
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .min(0)
        .line_width(1)
        .fill_opacity(40 if stacked else 5)
    )
    return made.stacking(common.StackingConfig().mode(StackingMode.NORMAL)) if stacked else made


def rate(metric: str, by: Sequence[str] = (), labels: str = "") -> str:
    """Increase a second of a counter, added up over machines by the labels in `by`."""
    return f"{over('sum', by)} (rate({metric}{labels}[$__rate_interval]))"


def quantile(share: float, histogram: str, by: Sequence[str] = (), labels: str = "") -> str:
    """A quantile of a histogram over all machines."""
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', ('le', *by), labels)})"


def over(function: str, by: Sequence[str]) -> str:
    """`sum by (a, b)`, or `sum` alone."""
    return f"{function} by ({', '.join(by)})" if by else function


OWN = '{scope!="other"}'
"""Grams of the service: its requests, overhead and the machine's idling; other programs have their own."""
GRAMS = rate("jouleserve_carbon_grams_total", labels=OWN)
PER_REQUEST = rate("jouleserve_requests_total", labels='{outcome=~"ok|cached"}')
"""Texts that got an answer, a second."""
