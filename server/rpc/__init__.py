"""gRPC: the Open Inference Protocol, our own typed call, health and reflection, straight from the replica.

Loads gRPC only where `server.grpc_port` is set.
"""

from __future__ import annotations

from importlib.util import find_spec

from server.start_error import StartError


def check_installed() -> None:
    """Raise StartError if the packages are missing."""
    missing = [name for name in ("grpc", "grpc_health", "grpc_reflection") if find_spec(name) is None]
    if missing:
        raise StartError(
            f"server.grpc_port: {', '.join(missing)} not installed; pip install '.[grpc]', or unset the port"
        )
