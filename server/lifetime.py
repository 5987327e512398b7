"""What both ways of serving do at their start and at their end: ports, signals, jobs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

from server.addresses import joined
from server.rpc import check_installed
from server.settings import Settings
from server.start_error import StartError

Say = Callable[[str], None]


def take_signals(stop: Callable[[], Any]) -> None:
    """Call `stop` on SIGINT, SIGTERM and SIGHUP, whoever handled them before; SIGHUP stays ignored under `nohup`.

    SIGHUP is no reload: settings, versions and keys are followed while the server runs, so that there is nothing to.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue
        loop.remove_signal_handler(number)
        loop.add_signal_handler(number, stop)


async def run_until(stopping: asyncio.Event, *jobs: Any) -> None:
    """Run the jobs, which never end by themselves, until `stopping` is set. Raises what one of them raises."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    waiting = asyncio.create_task(stopping.wait())
    try:
        done, _ = await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (*tasks, waiting):
            task.cancel()
        await asyncio.gather(*tasks, waiting, return_exceptions=True)


def check_ports(settings: Settings) -> None:
    """Raise StartError if a port of the server is taken."""
    server = settings.server
    ports = {"port": server.port, "metrics_port": server.metrics_port}
    if server.grpc_port is not None:
        check_installed()
        # Bound here without SO_REUSEPORT: with it, the replicas would share the port with a stranger and not notice.
        ports["grpc_port"] = server.grpc_port
    for field, port in ports.items():
        try:
            _bind(server.host, port)
        except OSError as error:
            raise StartError(
                f"server.{field}: cannot listen on {joined(server.host, port)} ({error.strerror}); "
                f"stop what does, or give another one: --set server.{field}=…"
            ) from None


def _bind(host: str, port: int) -> None:
    """Raises OSError if nobody could listen there. A name is tried as its first address."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


@contextlib.contextmanager
def deaf_to_hangup() -> Iterator[None]:
    """Ignore SIGHUP within, and in every process that is started within: a terminal that closes sends it to all of
    them, and only this one may take it for a request to stop."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
