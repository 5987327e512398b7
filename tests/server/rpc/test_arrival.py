"""Calls that say nothing, and streams that never end, leave room for those who want an answer."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from server.engine.family import Family
from server.guard import Guard
from server.rpc.proto import open_inference_pb2 as oip
from server.rpc.server import MAX_CALLS, MIN_CALLS, calls_at_once
from tests.support.engines import until
from tests.support.rpc import INFER, PREDICT, Rpc, rpc_serving

HEALTH = "/grpc.health.v1.Health/Check"


def watch(rpc: Rpc) -> Any:
    return health_pb2_grpc.HealthStub(rpc.channel).Watch(health_pb2.HealthCheckRequest())


def reflect(rpc: Rpc) -> Any:
    return reflection_pb2_grpc.ServerReflectionStub(rpc.channel).ServerReflectionInfo()


async def code_of(call: Any) -> str:
    async with asyncio.timeout(15):
        return str((await call.code()).name)


async def test_watches_beyond_their_number_are_refused_and_calls_are_answered(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rpc.server.MAX_WATCHES", 2)
    async with rpc_serving(family) as rpc:
        watches = [watch(rpc) for _ in range(2)]
        for one in watches:
            await one.read()
        assert await code_of(watch(rpc)) == "RESOURCE_EXHAUSTED"
        assert (await rpc.predict("card")).predictions
        watches[0].cancel()
        again = watch(rpc)
        async with asyncio.timeout(15):
            while not isinstance(await again.read(), health_pb2.HealthCheckResponse):
                again = watch(rpc)  # the server may not have heard yet that a place is free
        for one in (watches[1], again):
            one.cancel()


async def test_reflections_beyond_their_number_are_refused(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.rpc.server.MAX_REFLECTIONS", 1)
    async with rpc_serving(family) as rpc:
        first = reflect(rpc)
        await first.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await first.read()
        assert await code_of(reflect(rpc)) == "RESOURCE_EXHAUSTED"
        first.cancel()


@pytest.mark.parametrize("stream", [watch, reflect])
async def test_a_stream_is_ended_after_a_while(family: Family, monkeypatch: pytest.MonkeyPatch, stream: Any) -> None:
    monkeypatch.setattr("server.rpc.server.MAX_WATCH_S", 0.5)
    monkeypatch.setattr("server.rpc.server.MAX_REFLECTION_S", 0.05)
    async with rpc_serving(family) as rpc:
        call = stream(rpc)
        with suppress(grpc.aio.AioRpcError):
            async with asyncio.timeout(15):
                async for _ in call:
                    pass
        assert await code_of(call) == "UNAVAILABLE"


@pytest.mark.parametrize("path", [PREDICT, INFER, HEALTH])
async def test_a_call_without_a_message_is_given_up(family: Family, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr("server.rpc.arrival.READ_TIMEOUT_S", 0.05)
    async with rpc_serving(family) as rpc:
        silent = rpc.channel.stream_unary(path)()
        assert await code_of(silent) == "DEADLINE_EXCEEDED"


async def test_a_call_that_ends_without_a_message_is_the_clients_fault(family: Family) -> None:
    async with rpc_serving(family) as rpc:
        empty = rpc.channel.stream_unary(PREDICT)()
        await empty.done_writing()
        assert await code_of(empty) == "INVALID_ARGUMENT"


async def test_many_silent_calls_do_not_keep_out_who_says_something(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rpc.arrival.MAX_SILENT", 2)
    async with rpc_serving(family) as rpc:
        silent = [rpc.channel.stream_unary(PREDICT)() for _ in range(4)]
        await until(lambda: sum(one.done() for one in silent) == 2)  # long before READ_TIMEOUT_S
        ended = [one for one in silent if one.done()]
        assert [await code_of(one) for one in ended] == ["DEADLINE_EXCEEDED"] * 2
        assert (await rpc.predict("card")).predictions
        for one in silent:
            one.cancel()


async def test_who_has_no_key_is_refused_before_a_message_is_there(family: Family, tmp_path: Path) -> None:
    async with rpc_serving(family, Guard(locked(tmp_path), None, clock=lambda: 0.0)) as rpc:
        assert await code_of(rpc.channel.stream_unary(PREDICT)()) == "UNAUTHENTICATED"


KEYLESS: dict[str, tuple[Any, bool]] = {
    "ServerLive": (oip.ServerLiveRequest(), True),
    "ServerReady": (oip.ServerReadyRequest(), True),
    "ModelReady": (oip.ModelReadyRequest(name="tiny"), False),
    "ServerMetadata": (oip.ServerMetadataRequest(), False),
    "ModelMetadata": (oip.ModelMetadataRequest(name="tiny"), False),
    "ModelInfer": (oip.ModelInferRequest(model_name="tiny"), False),
}


@pytest.mark.parametrize("method", KEYLESS)
async def test_without_a_key_only_the_health_is_told_as_over_http(family: Family, tmp_path: Path, method: str) -> None:
    request, is_open = KEYLESS[method]
    async with rpc_serving(family, Guard(locked(tmp_path), None, clock=lambda: 0.0)) as rpc:
        call = rpc.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(request.SerializeToString())
        assert await code_of(call) == ("OK" if is_open else "UNAUTHENTICATED")
        check = await health_pb2_grpc.HealthStub(rpc.channel).Check(health_pb2.HealthCheckRequest())
    assert check.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_message_that_is_no_question_ends_its_stream_as_the_clients_fault(family: Family) -> None:
    async with rpc_serving(family) as rpc:
        call = rpc.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_where_messages_may_be_large_there_are_fewer_calls() -> None:
    assert calls_at_once(1024) == MAX_CALLS
    assert MIN_CALLS <= calls_at_once(3 << 20) < MAX_CALLS
    assert calls_at_once(1 << 40) == MIN_CALLS


def locked(folder: Path) -> Path:
    """A key file that lets in who nobody is."""
    keys = folder / "keys"
    keys.write_text(f"me: sha256:{'0' * 64}\n")
    keys.chmod(0o600)
    return keys
