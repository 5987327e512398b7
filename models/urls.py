"""URLs as they may be shown."""

from __future__ import annotations


def without_secrets(url: str) -> str:
    """The URL without a user's name and password: as it may stand in reports, messages and logs."""
    head, mark, rest = url.partition("://")
    if not mark:
        return url
    authority, slash, path = rest.partition("/")
    return head + mark + authority.rpartition("@")[2] + slash + path
