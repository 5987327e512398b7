"""A report as one HTML page: styles and pictures inside, no script, nothing fetched; light and dark, also on phones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from html import escape

from compile.report.document import Block, Bullets, Document, Folded, Heading, Plot, Table, Text
from compile.report.style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LONG_TEXT = 30


def to_html(document: Document) -> str:
    """The document as a page that needs nothing else."""
    body = "\n".join(_written(block) for block in document.blocks)
    title = escape(document.title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


@singledispatch
def _written(block: Block) -> str:
    raise TypeError(f"no HTML for {type(block).__name__}")


@_written.register
def _(block: Heading) -> str:
    return f"<h2>{escape(block.text)}</h2>"


@_written.register
def _(block: Text) -> str:
    return f"<p>{escape(block.text)}</p>"


@_written.register
def _(block: Bullets) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(item)}</li>" for item in block.items) + "\n</ul>"


@_written.register
def _(block: Table) -> str:
    columns = list(zip(block.columns, *block.rows, strict=True))
    kinds = [_kind(column, at < block.words) for at, column in enumerate(columns)]
    head = _row(block.columns, "col", kinds)
    body = "\n".join(_row(row, "row", kinds) for row in block.rows)
    # The region scrolls by itself where it is wider than the page, so it must be reachable by keyboard.
    return (
        f'<div class="wide" role="region" aria-label="{escape(block.columns[0])} table" tabindex="0">\n'
        f"<table>\n<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


@_written.register
def _(block: Plot) -> str:
    return f'<figure role="img" aria-label="{escape(block.alt)}">\n{block.svg}\n</figure>'


@_written.register
def _(block: Folded) -> str:
    content = block.content
    inner = _written(content) if isinstance(content, Table) else f"<pre>{escape(content)}</pre>"
    return f"<details>\n<summary>{escape(block.title)}</summary>\n{inner}\n</details>"


def _kind(column: Sequence[str], words: bool) -> str:
    """Class of a column's cells: figures, long text that needs room on a phone, or neither."""
    if not words:
        return ' class="figure"'
    return ' class="long"' if max(map(len, column)) > _LONG_TEXT else ""


def _row(cells: Sequence[str], scope: str, kinds: Sequence[str]) -> str:
    """One row; all its cells are headings where `scope` is col, else the first one is."""
    made = []
    for at, (cell, kind) in enumerate(zip(cells, kinds, strict=True)):
        tag, heads = ("th", f' scope="{scope}"') if scope == "col" or at == 0 else ("td", "")
        made.append(f"<{tag}{heads}{kind}>{escape(cell)}</{tag}>")
    return f"<tr>{''.join(made)}</tr>"
