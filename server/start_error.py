"""Why `jouleserve up` could not start; apart, so that the command line knows it without loading the server."""

from __future__ import annotations


class StartError(Exception):
    """Something that the server needs did not come up; the message says what and where to look."""
