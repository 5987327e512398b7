"""The gRPC server of a replica. Several replicas of a node share its port (SO_REUSEPORT): the kernel hands each new
connection to one of them, and no proxy stands between."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from server.api.app import RELEASE, Replies
from server.rpc import oip, predictor
from server.rpc.proto.pool import POOL

log = structlog.get_logger(__name__)

MAX_CALLS = 4096
"""Calls in flight in one replica; further ones are refused (RESOURCE_EXHAUSTED). Well above the engine's queue, which
refuses in better form."""
MAX_STREAMS = 1024
"""Calls in flight on one connection; the client keeps further ones back."""
HANDSHAKE_TIMEOUT_MS = 10_000
MAX_METADATA_BYTES = 16_384
LINGER_S = 0.2
"""Seconds in which calls that came while the engine drained are still refused in good form."""
LAST_WORDS_S = 1.0
"""Seconds for replies to leave after the engine has answered; ends health watches, too, which never end themselves."""


class RpcServer:
    """Predictions over gRPC, health and reflection on one port."""

    def __init__(self, replies: Replies, host: str, port: int, max_message_bytes: int) -> None:
        self._address = f"{host}:{port}"
        self._server: Any = grpc.aio.server(
            maximum_concurrent_rpcs=MAX_CALLS, options=_options(max_message_bytes), compression=None
        )
        self._health = health.aio.HealthServicer()
        self._services = (oip.SERVICE, predictor.SERVICE)
        methods = (oip.inference_methods(replies, RELEASE), predictor.predictor_methods(replies))
        for service, handlers in zip(self._services, methods, strict=True):
            self._server.add_registered_method_handlers(service, handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._reflect()

    def _reflect(self) -> None:
        files = (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
        for file in files:
            POOL.AddSerializedFile(file.serialized_pb)
        names = [service.full_name for file in files for service in file.services_by_name.values()]
        reflection.enable_server_reflection((*self._services, *names), self._server, pool=POOL)

    async def start(self) -> None:
        """Listen. Raises RuntimeError, naming the setting, if the port cannot be had."""
        try:
            self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise RuntimeError(
                f"server.grpc_port: cannot listen on {self._address} ({error}); give another one"
            ) from error
        await self._server.start()
        for service in self._services:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def say_stopping(self) -> None:
        """Tell those who ask for, or watch, the health of the server. Calls are taken as before: while it drains the
        engine refuses them with UNAVAILABLE and when to retry, and gRPC itself would cancel those that have just come.
        """
        await self._health.enter_graceful_shutdown()

    async def stop(self) -> None:
        """End within about a second, after the engine has drained; what it has answered still leaves."""
        await asyncio.sleep(LINGER_S)
        await self._server.stop(LAST_WORDS_S)


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        # Identity only: the limit above is one of the compressed size, and a small message can unpack to gigabytes.
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]
