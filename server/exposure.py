"""What `jouleserve up` checks and says before it opens the server: keys, the network, tracing."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

from server.config_problems import SettingsError
from server.guard import Guard, KeyFileError, RateLimit, read_keys
from server.settings import ServerSettings, Settings
from server.tracing import check_tracing


def check_exposure(settings: Settings, say: Callable[[str], None]) -> None:
    """Raise SettingsError for a key file or a tracing endpoint that cannot be used; warn where anybody may ask."""
    server = settings.server
    for field, path in (("api_keys_file", server.api_keys_file), ("admin_keys_file", server.admin_keys_file)):
        try:
            if path is not None:
                read_keys(path)
        except KeyFileError as error:
            raise SettingsError([f"server.{field}: {error}"]) from None
    if server.api_keys_file is None and not is_loopback(server.host):
        ports = f"port {server.port}" if server.grpc_port is None else f"ports {server.port} and {server.grpc_port}"
        say(
            f"warning: {server.host} is open to the network and no API key is asked for: whoever reaches {ports}"
            " may use the server; set server.api_keys_file, or server.host to 127.0.0.1"
        )
    check_tracing(settings.tracing.otlp_endpoint)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_guard(server: ServerSettings, clock: Callable[[], float] = time.monotonic) -> Guard | None:
    """The guard that the settings ask for; None if everybody may ask as much as they like."""
    rate = None
    if server.rate_limit_texts_per_s is not None:
        rate = RateLimit(server.rate_limit_texts_per_s, server.rate_limit_burst_texts)
    if server.api_keys_file is None and rate is None:
        return None
    return Guard(server.api_keys_file, rate, clock)


def make_admin_guard(server: ServerSettings, clock: Callable[[], float] = time.monotonic) -> Guard | None:
    """The guard of `/admin`; None if it is closed."""
    return None if server.admin_keys_file is None else Guard(server.admin_keys_file, None, clock)
