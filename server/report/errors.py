"""What `jouleserve report` raises; apart, so that the command line can name it without loading the rest."""

from __future__ import annotations


class ReportError(Exception):
    """A report cannot be made; the message says what is missing and the remedy."""
