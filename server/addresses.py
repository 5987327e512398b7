"""Hosts and ports, of IPv4 and IPv6."""

from __future__ import annotations


def joined(host: str, port: int) -> str:
    """`host:port` as URLs and gRPC have it: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
