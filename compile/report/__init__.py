"""The report of a published version: one HTML page that needs nothing else, and Markdown with its plots beside it."""

from __future__ import annotations

from pathlib import Path

from compile.report.content import build, relative_table
from compile.report.figures import figures
from compile.report.html import to_html
from compile.report.markdown import table_lines, to_markdown
from compile.report.predictions import manifests
from models.manifest import Manifest
from models.store import Store, Version, write_atomic

__all__ = ["PAGE", "build", "figures", "main_table", "to_html", "to_markdown", "write_report"]
PAGE = "report.html"


def main_table(manifest: Manifest) -> str:
    """Accuracy, size, time and energy of every way to answer as shares of the teacher's, as a Markdown table."""
    return "\n".join(table_lines(relative_table(manifest))) + "\n"


def write_report(version: Version, path: Path) -> Path:
    """Write the report as Markdown to `path`, its plots and the page (`report.html`) beside it; returns `path`.

    Equal stores give equal bytes.
    """
    # The store that the version lies in: the predictor of joules learns from every family of it.
    peers = manifests(Store(version.path.parent.parent), version.manifest)
    document = build(version.manifest, version.name, peers)
    for plot in document.plots:
        write_atomic(path.parent / f"{plot.name}.png", plot.png)
    write_atomic(path.parent / PAGE, to_html(document).encode())
    write_atomic(path, to_markdown(document).encode())
    return path
