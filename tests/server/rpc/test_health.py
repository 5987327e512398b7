"""Health and reflection, asked with their own client stubs."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from server.engine.family import Family
from tests.support.rpc import Rpc, rpc_serving

SERVICES = ("inference.GRPCInferenceService", "jouleserve.v1.Predictor")
SERVING, NOT_SERVING = (health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING)


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_each_service_is_serving_and_an_unknown_one_is_not_known(family: Family, service: str) -> None:
    async with rpc_serving(family) as rpc:
        stub = health_pb2_grpc.HealthStub(rpc.channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_who_watches_hears_of_the_stop_and_does_not_delay_it(family: Family) -> None:
    async with rpc_serving(family) as rpc:
        watch = health_pb2_grpc.HealthStub(rpc.channel).Watch(health_pb2.HealthCheckRequest())
        first = (await watch.read()).status
        await rpc.server.say_stopping()
        second = (await watch.read()).status
        await rpc.engine.drain(1)
        async with asyncio.timeout(15):
            await rpc.server.stop()
    assert (first, second) == (SERVING, NOT_SERVING)


async def ask(rpc: Rpc, **question: Any) -> reflection_pb2.ServerReflectionResponse:
    stub = reflection_pb2_grpc.ServerReflectionStub(rpc.channel)
    async for reply in stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)])):
        return reply
    raise AssertionError("no reply")


async def test_reflection_lists_the_services_and_describes_their_methods(family: Family) -> None:
    async with rpc_serving(family) as rpc:
        listed = await ask(rpc, list_services="")
        names = {one.name for one in listed.list_services_response.service}
        assert names == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        methods: dict[str, set[str]] = {}
        for name in names:
            described = await ask(rpc, file_containing_symbol=name)
            for raw in described.file_descriptor_response.file_descriptor_proto:
                file = FileDescriptorProto.FromString(raw)
                for service in file.service:
                    methods[f"{file.package}.{service.name}"] = {method.name for method in service.method}
    assert methods.keys() == names
    assert methods["jouleserve.v1.Predictor"] == {"Predict"}
    assert "ModelInfer" in methods["inference.GRPCInferenceService"]
