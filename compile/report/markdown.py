"""A report as Markdown; its pictures are PNG files beside it."""

from __future__ import annotations

from functools import singledispatch

from compile.report.document import Block, Bullets, Document, Folded, Heading, Plot, Table, Text


def to_markdown(document: Document) -> str:
    """The document in GitHub's Markdown."""
    return "\n\n".join([f"# {_inline(document.title)}", *(_written(block) for block in document.blocks)]) + "\n"


def table_lines(table: Table) -> list[str]:
    """A table's lines."""
    rule = ["---"] * table.words + ["---:"] * (len(table.columns) - table.words)
    rows = [table.columns, *table.rows]
    lines = ["| " + " | ".join(_inline(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "|".join(rule) + "|", *lines[1:]]


@singledispatch
def _written(block: Block) -> str:
    raise TypeError(f"no Markdown for {type(block).__name__}")


@_written.register
def _(block: Heading) -> str:
    return f"## {_inline(block.text)}"


@_written.register
def _(block: Text) -> str:
    return _inline(block.text)


@_written.register
def _(block: Bullets) -> str:
    return "\n".join(f"- {_inline(item)}" for item in block.items)


@_written.register
def _(block: Table) -> str:
    return "\n".join(table_lines(block))


@_written.register
def _(block: Plot) -> str:
    return f"![{_inline(block.alt)}]({block.name}.png)"


@_written.register
def _(block: Folded) -> str:
    content = block.content
    inner = _written(content) if isinstance(content, Table) else _fenced(content)
    return f"<details><summary>{_inline(block.title)}</summary>\n\n{inner}\n\n</details>"


def _inline(text: str) -> str:
    """One line of plain text: nothing in it may start a tag or a new block."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text.rstrip()}\n{fence}"
