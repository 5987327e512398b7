"""The gRPC server of a replica. Several replicas of a node share its port (SO_REUSEPORT): the kernel hands each new
connection to one of them, and no proxy stands between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from server.addresses import joined
from server.api.http import READ_TIMEOUT_S
from server.api.info import RELEASE
from server.api.replies import Replies
from server.rpc import oip, predictor
from server.rpc.arrival import Arrivals, Streams, parse
from server.rpc.calls import Call, unary
from server.rpc.proto.pool import POOL

log = structlog.get_logger(__name__)

MAX_CALLS, MIN_CALLS = 1024, 256
"""Calls in flight in one replica; further ones are refused (RESOURCE_EXHAUSTED). Above the engine's usual queue, which
refuses in better form."""
MESSAGES_BYTES = 1 << 30
"""What the messages of all calls may hold together; where messages may be large, there are fewer calls."""
MAX_STREAMS = 128
"""Calls in flight on one connection; the client keeps further ones back."""
MAX_WATCHES, MAX_WATCH_S = 64, 600.0
MAX_REFLECTIONS, MAX_REFLECTION_S = 16, READ_TIMEOUT_S
MAX_IDLE_MS, MAX_AGE_MS = 300_000, 1_800_000
"""A connection without a call is closed, and every connection is renewed now and then: clients do so unseen."""
HANDSHAKE_TIMEOUT_MS = 10_000
MAX_METADATA_BYTES = 16_384
LINGER_S = 0.2
"""Seconds in which calls that came while the engine drained are still refused in good form."""
LAST_WORDS_S = 1.0
"""Seconds for replies to leave after the engine has answered; ends health watches, too, which never end themselves."""


class RpcServer:
    """Predictions over gRPC, health and reflection on one port."""

    def __init__(self, replies: Replies, host: str, port: int, max_message_bytes: int) -> None:
        self._address = joined(host, port)
        self._server: Any = grpc.aio.server(
            maximum_concurrent_rpcs=calls_at_once(max_message_bytes),
            options=_options(max_message_bytes, replies.engine.limits.request_timeout_s),
            compression=None,
        )
        self._health = health.aio.HealthServicer()
        arrivals = Arrivals()
        self._services = (oip.SERVICE, predictor.SERVICE)
        methods = (oip.inference_methods(replies, arrivals, RELEASE), predictor.predictor_methods(replies, arrivals))
        for service, handlers in zip(self._services, methods, strict=True):
            self._server.add_registered_method_handlers(service, handlers)
        names = {"Health": health_pb2.DESCRIPTOR, "ServerReflection": reflection_pb2.DESCRIPTOR}
        health_name, reflection_name = (file.services_by_name[name].full_name for name, file in names.items())
        self._tell_health(health_name, replies, arrivals)
        for file in names.values():
            POOL.AddSerializedFile(file.serialized_pb)
        self._reflect(reflection_name, (*self._services, health_name, reflection_name))

    def _tell_health(self, name: str, replies: Replies, arrivals: Arrivals) -> None:
        """`Check` and `Watch`, open to everybody as `/health` is."""
        request_type = health_pb2.HealthCheckRequest

        async def check(request: Message, call: Call) -> Message:
            reply: Message = await self._health.Check(request, call.context)
            return reply

        async def watch(_requests: Any, context: Any) -> None:
            await self._health.Watch(parse(request_type, await arrivals.read(context)), context)

        handlers = {
            "Check": unary(replies, arrivals, f"{name}/Check", request_type, check, needs_key=False),
            "Watch": Streams(MAX_WATCHES, MAX_WATCH_S).handler(watch),
        }
        self._server.add_registered_method_handlers(name, handlers)

    def _reflect(self, name: str, services: Sequence[str]) -> None:
        """What the services look like, open to everybody as `/openapi.json` is."""
        servicer = reflection.aio.ReflectionServicer(services, pool=POOL)

        async def describe(requests: AsyncIterator[bytes], context: Any) -> None:
            questions = (parse(reflection_pb2.ServerReflectionRequest, raw) async for raw in requests)
            async for reply in servicer.ServerReflectionInfo(questions, context):
                await context.write(reply)

        handlers = {"ServerReflectionInfo": Streams(MAX_REFLECTIONS, MAX_REFLECTION_S).handler(describe)}
        self._server.add_registered_method_handlers(name, handlers)

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


def calls_at_once(max_message_bytes: int) -> int:
    """How many calls may be in flight where a message may be so large."""
    return min(MAX_CALLS, max(MIN_CALLS, MESSAGES_BYTES // max_message_bytes))


def _options(max_message_bytes: int, request_timeout_s: float) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_connection_idle_ms", MAX_IDLE_MS),
        ("grpc.max_connection_age_ms", MAX_AGE_MS),
        # What was asked before the client heard that it is to connect anew is still answered.
        ("grpc.max_connection_age_grace_ms", int((READ_TIMEOUT_S + request_timeout_s) * 1000)),
        # Identity only: the limit above is one of the compressed size, and a small message can unpack to gigabytes.
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]
