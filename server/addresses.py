"""Hosts and ports, of IPv4 and IPv6, and URLs as they may be shown."""

from __future__ import annotations


def joined(host: str, port: int) -> str:
    """`host:port` as URLs and gRPC have it: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def without_secrets(url: str) -> str:
    """The URL without a user's name and password: as it may stand in reports, messages and logs."""
    head, mark, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return head + mark + authority.rpartition("@")[2] + slash + path
