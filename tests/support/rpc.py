"""A gRPC server around an engine of the tiny family, and a client of it, in one event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from loadtest.served import free_port
from server.api.replies import Replies
from server.engine.family import Family
from server.guard import Guard
from server.rpc.proto import open_inference_pb2 as oip
from server.rpc.proto import predictor_pb2 as own
from server.rpc.server import RpcServer
from server.tracing import Tracer
from tests.support.engines import RecordingUsage, WatchedEngine, running

MAX_MESSAGE = 100_000
PREDICT = "/jouleserve.v1.Predictor/Predict"
INFER = "/inference.GRPCInferenceService/ModelInfer"


class Meter:
    """What a node process would say."""

    joules_per_cpu_second: float | None = 12.5
    loaded_ratio: float | None = 4.0
    sources: tuple[str, ...] = ("estimated",)


@dataclass
class Rpc:
    """A running server, its engine, and a channel to it."""

    server: RpcServer
    engine: WatchedEngine
    usage: RecordingUsage
    channel: Any

    async def predict(self, *texts: str, **fields: Any) -> own.PredictReply:
        """Call Predict; options of the call are `timeout` and `metadata`."""
        options = {name: fields.pop(name) for name in ("timeout", "metadata") if name in fields}
        message = own.PredictRequest(texts=texts, **fields)
        raw = await self.raw(PREDICT, message.SerializeToString(), **options)
        return own.PredictReply.FromString(raw)

    async def infer(self, *texts: str, **fields: Any) -> oip.ModelInferResponse:
        """Call ModelInfer with typed contents."""
        tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)]}
        contents = {"bytes_contents": [text.encode() for text in texts]}
        message = oip.ModelInferRequest(
            **{"model_name": "tiny", "inputs": [{**tensor, "contents": contents}], **fields}
        )
        return oip.ModelInferResponse.FromString(await self.raw(INFER, message.SerializeToString()))

    async def call(self, method: str, request: Message, reply: type[Message]) -> Any:
        """Call any method of the Open Inference Protocol."""
        path = f"/inference.GRPCInferenceService/{method}"
        return reply.FromString(await self.raw(path, request.SerializeToString()))

    async def raw(self, path: str, message: bytes, **options: Any) -> bytes:
        """Send these bytes, get those."""
        reply: bytes = await self.channel.unary_unary(path)(message, **{"timeout": 20, **options})
        return reply


@asynccontextmanager
async def rpc_serving(
    family: Family, guard: Guard | None = None, *, tracer: Tracer | None = None, **options: Any
) -> AsyncIterator[Rpc]:
    """A server on a port of its own; `options` are those of the engine."""
    async with running(family, **options) as (engine, usage):
        port = free_port()
        replies = Replies(engine, Meter(), MAX_MESSAGE, usage, guard, tracer)
        server = RpcServer(replies, "127.0.0.1", port, MAX_MESSAGE)
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Rpc(server, engine, usage, channel)
        finally:
            await server.stop()
