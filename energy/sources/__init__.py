"""One device family a file, and the choice among them."""

from energy.sources.selection import PREFERENCES, Selection, select_sources

__all__ = ["PREFERENCES", "Selection", "select_sources"]
