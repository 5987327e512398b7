"""A report as Markdown and as one HTML page that fetches nothing. Both say the same."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from server.report.figures import Figure, Report
from server.report.plots import bars_plot, hours_plot

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """body{margin:0;background:#fff;color:#1b2226;font:16px/1.5 system-ui,sans-serif}
main{max-width:62rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h2{font-size:1.2rem;margin-top:2.5rem;padding-top:.75rem;border-top:1px solid #d3dadd}
svg{display:block;width:100%;max-width:48rem;height:auto}
div{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .7rem;border-bottom:1px solid #d3dadd;text-align:left;vertical-align:top}
.figure{text-align:right;white-space:nowrap}"""

BOUNDARY = (
    "The machine that serves: every process of the server (HTTP entry, replicas, Ray, the node process that meters) and"
    " the machine's idling, from the energy counter on; cooling and power supply of the building by PUE.",
)
METHODS = (
    "Energy: cumulative counters (RAPL, NVML) or, without them, CPU time times documented coefficients; the source"
    " stands beside every figure.",
    "Requests: a batch's CPU time is shared among its texts by a fitted cost weight, padding included; what is left of"
    " the serving processes is overhead.",
    "Idling: what the machine draws at rest, learned from quiet seconds, or by construction of the estimate. Fully"
    " loaded figures lay it and the overhead on requests by their dynamic joules.",
    "Carbon: each second's joules times the grid's average, location-based intensity of that time, times PUE.",
    "Embodied: a published model of rack servers, by the share of their life and of their resources that was used.",
)
EXCLUSIONS = (
    "Left out: clients and the network to them, storage and network equipment outside the machine, making of the"
    " training data, training of the base model, buildings, people. Compiling is shown apart, in no other figure.",
    "Offsets, certificates and market-based factors are not used.",
)

Rows = Sequence[Sequence[str]]
_FIGURES = ("figure", "value", "low to high", "source")


def shown(value: float) -> str:
    """A number for readers: four significant digits, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def _figure_rows(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    return [
        (
            one.name,
            f"{shown(one.value)} {one.unit}",
            "" if one.low is None or one.high is None else f"{shown(one.low)} to {shown(one.high)}",
            one.source,
        )
        for one in figures
    ]


def _sections(report: Report) -> list[tuple[str, Sequence[str], tuple[str, ...], Rows]]:
    """Heading, paragraphs, columns and rows of every section."""
    accounts = [
        (
            *(str(row[key]) for key in ("model", "variant", "class", "outcome")),
            *(shown(row[key]) for key in ("texts", "dynamic_joules", "loaded_joules")),
            row["source"],
        )
        for row in report.by_account
    ]
    columns = ("model", "variant", "class", "outcome", "texts", "dynamic J", "fully loaded J", "joules by")
    sci = _figure_rows(report.sci)
    no_sci = () if sci else ("No score: it needs answered requests and an intensity of the grid.",)
    return [
        ("Energy", (), _FIGURES, _figure_rows(report.energy)),
        ("Requests", (), _FIGURES, _figure_rows(report.requests)),
        ("By variant, class and outcome", (), columns, accounts),
        ("Carbon", (), _FIGURES, _figure_rows(report.carbon)),
        ("Software Carbon Intensity (ISO/IEC 21031)", no_sci, _FIGURES, sci),
        ("Return on the work", (), _FIGURES, _figure_rows(report.returns)),
        ("Boundary, methods, exclusions", (*BOUNDARY, *METHODS, *EXCLUSIONS), (), ()),
        ("Notes", report.notes, (), ()),
    ]


def _title(report: Report) -> str:
    return f"Energy report, {report.begin} to {report.end}"


def _lead(report: Report) -> str:
    return f"{shown(report.hours)} metered hours out of {report.origin}."


def _plots(report: Report) -> list[str]:
    saved = [
        (one.name.removeprefix("saved by "), one.value, one.low or 0.0, one.high or 0.0)
        for one in report.returns
        if one.name.startswith("saved by ") and one.unit == "kWh"
    ]
    return [
        hours_plot(report.hourly),
        bars_plot("Saved, each against its own counterfactual", "kWh", saved),
    ]


def to_markdown(report: Report) -> str:
    """The report for readers of text."""
    out = [f"# {_title(report)}", "", _lead(report), ""]
    for heading, texts, columns, rows in _sections(report):
        out += [f"## {heading}", ""]
        out += [line for text in texts for line in (f"- {text}",)] + ([""] if texts else [])
        if rows:
            out += [_md_row(columns), _md_row(["---"] * len(columns)), *(_md_row(row) for row in rows), ""]
    return "\n".join(out).rstrip() + "\n"


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_html(report: Report) -> str:
    """The report as a page with plots."""
    body = [f"<h1>{escape(_title(report))}</h1>", f"<p>{escape(_lead(report))}</p>", *_plots(report)]
    for heading, texts, columns, rows in _sections(report):
        body.append(f"<h2>{escape(heading)}</h2>")
        body += [f"<p>{escape(text)}</p>" for text in texts]
        if rows:
            body.append(_html_table(columns, rows))
    policy, title = escape(_POLICY), escape(_title(report))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def _html_table(columns: Sequence[str], rows: Rows) -> str:
    numbers = {"value", "low to high", "texts", "dynamic J", "fully loaded J"}
    kinds = [' class="figure"' if column in numbers else "" for column in columns]
    head = "".join(f'<th scope="col"{kind}>{escape(column)}</th>' for column, kind in zip(columns, kinds, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    ]
    return f"<div><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table></div>"
