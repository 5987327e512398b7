"""Which sockets of a process tree can be reached from beyond the machine."""

from __future__ import annotations

import contextlib
import ipaddress
from typing import NamedTuple

import psutil


class Listener(NamedTuple):
    """A socket that takes connections or datagrams from whoever reaches its address."""

    process: str
    address: str
    port: int


def listeners(root_pid: int) -> set[Listener]:
    """Every TCP listener and bound UDP socket of the process and all below it."""
    found: set[Listener] = set()
    root = psutil.Process(root_pid)
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            name = " ".join(process.cmdline())[:80] or process.name()
            for one in process.net_connections(kind="inet"):
                if one.status == psutil.CONN_LISTEN or (one.type.name == "SOCK_DGRAM" and not one.raddr):
                    found.add(Listener(name, one.laddr.ip, one.laddr.port))
    return found


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches it; an IPv4 address inside an IPv6 one is seen through."""
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback


def beyond_loopback(root_pid: int) -> set[Listener]:
    """Listeners that others than this machine can reach."""
    return {one for one in listeners(root_pid) if not is_loopback(one.address)}
