"""Colours of pages and plots, and the page's style sheet.

Plots are drawn in the light colours; in a page each becomes the style sheet's variable of the same name, so that
they follow the reader's light or dark setting.
"""

from __future__ import annotations

LIGHT = {
    "ink": "#1b2226",
    "muted": "#5c676d",
    "rule": "#d3dadd",
    "main": "#0a7055",
    "second": "#b4540a",
    "faint": "#8a959b",
}
DARK = {
    "ink": "#e4e9eb",
    "muted": "#9fabb1",
    "rule": "#3a454b",
    "main": "#4cc7a0",
    "second": "#f0a35e",
    "faint": "#7d898f",
}


def _variables(colours: dict[str, str], ground: str, raised: str) -> str:
    named = {**colours, "ground": ground, "raised": raised}
    return " ".join(f"--{name}: {colour};" for name, colour in named.items())


STYLE = f""":root {{ color-scheme: light dark; {_variables(LIGHT, "#ffffff", "#f4f6f7")} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK, "#14191c", "#1d2428")} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }}
main {{ max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--rule); }}
p, li {{ max-width: 46rem; overflow-wrap: anywhere; }}
ul {{ padding-left: 1.2rem; }}
figure {{ margin: 1rem 0; }}
figure svg {{ display: block; width: 100%; max-width: 34rem; height: auto; }}
.wide {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .7rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top;
  min-width: 3.2rem; max-width: 30rem; }}
thead th {{ color: var(--muted); font-weight: 600; vertical-align: bottom; }}
tbody th {{ font-weight: 600; position: sticky; left: 0; background: var(--ground); }}
.figure {{ text-align: right; }}
td.figure {{ white-space: nowrap; }}
details {{ margin: .75rem 0; }}
summary {{ cursor: pointer; color: var(--muted); }}
pre {{ background: var(--raised); padding: .75rem 1rem; overflow-x: auto; font-size: .85rem; }}
@media (max-width: 36rem) {{
  main {{ padding-top: 1rem; }}
  h1 {{ font-size: 1.3rem; }}
  table {{ font-size: .82rem; }}
  th, td {{ padding: .3rem .45rem; }}
  td.long {{ min-width: 14rem; }}
}}
"""
