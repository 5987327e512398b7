"""What a report is made of, apart from how it is written: headings, texts, tables, plots, folded blocks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """Title of a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """One paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list; never empty."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Cells in words; the first `words` columns are text, the others figures (aligned right)."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


@dataclass(frozen=True)
class Plot:
    """A picture by file name (without suffix), with what it shows in words."""

    name: str
    alt: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Folded:
    """Preformatted text or a table that is shown when asked for."""

    title: str
    content: str | Table


Block = Heading | Text | Bullets | Table | Plot | Folded


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def plots(self) -> tuple[Plot, ...]:
        """Its pictures, in order."""
        return tuple(block for block in self.blocks if isinstance(block, Plot))
