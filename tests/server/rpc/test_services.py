"""The gRPC services: what they answer, how they refuse, and what a client that leaves costs."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path
from typing import Any

import grpc
import pytest

from models.store import Store
from server.api.errors import ERRORS
from server.engine.errors import EngineError
from server.engine.family import Family, load_family
from server.guard import Guard, RateLimit
from server.rpc.proto import open_inference_pb2 as oip
from server.rpc.proto import predictor_pb2 as own
from tests.support.engines import gated, until
from tests.support.rpc import INFER, MAX_MESSAGE, PREDICT, rpc_serving
from tests.support.tiny_family import publish_tiny_family


async def refusal(call: Any) -> tuple[str, str | None, dict[str, str]]:
    """Status, `error-type` and trailing metadata of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    trailing = dict(caught.value.trailing_metadata() or ())
    return caught.value.code().name, trailing.get("error-type"), trailing


async def test_a_batch_is_answered_in_order_with_every_label_best_first(family: Family) -> None:
    async with rpc_serving(family) as rpc:
        reply = await rpc.predict("parcel", "my card", raw_scores=True)
    assert [one.labels[0] for one in reply.predictions] == ["parcel", "card"]
    assert list(reply.predictions[1].scores) == [1.0, 0.0, 0.0]


async def test_the_reply_says_who_answered_why_and_at_what_cost(family: Family) -> None:
    async with rpc_serving(family, standard="lite") as rpc:
        miss, hit = await rpc.predict("card"), await rpc.predict("card")
        eco = await rpc.predict("refund", quality=own.QUALITY_ECO)
        strict = await rpc.predict("refund", quality=own.QUALITY_STRICT)
    assert (miss.variant, miss.point, miss.cache, miss.reason) == ("lite", "lite", "miss", "pin")
    assert (miss.version, miss.joules_source) == (family.version, "estimated")
    assert miss.joules > 0
    assert miss.saved_joules > 0
    assert hit.cache == "hit"
    assert hit.HasField("saved_joules")
    assert not strict.HasField("saved_joules")
    assert (eco.point, strict.point) == ("nano", "full")


async def test_joules_are_absent_where_nothing_measures_them(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.rpc.Meter.joules_per_cpu_second", None)
    async with rpc_serving(family) as rpc:
        reply, infer = await rpc.predict("card"), await rpc.infer("card")
    assert not reply.HasField("joules")
    assert not reply.HasField("joules_source")
    assert not reply.HasField("saved_joules")
    assert not {"joules", "joules_source"} & set(infer.parameters)


async def test_pairs_are_answered_by_a_family_of_pairs(tmp_path: Path) -> None:
    pairs = load_family(publish_tiny_family(Store(tmp_path / "store"), pair=True))
    async with rpc_serving(pairs) as rpc:
        reply = await rpc.predict(pairs=[{"first": "my", "second": "card"}])
        shape = oip.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1, 2])
        shape.contents.bytes_contents.extend([b"my", b"card"])
        infer = await rpc.infer(inputs=[shape])
        single = await refusal(rpc.predict("card"))
    assert reply.predictions[0].labels[0] == "card"
    assert infer.outputs[0].contents.bytes_contents[0] == b"card"
    assert single[:2] == ("INVALID_ARGUMENT", "Validation")


async def test_a_long_text_is_cut_at_the_end_that_is_named(family: Family) -> None:
    text = "card " + "my " * 100 + "parcel"
    async with rpc_serving(family) as rpc:
        right = await rpc.predict(text, truncate=own.TRUNCATION_RIGHT)
        left = await rpc.predict(text, truncate=own.TRUNCATION_LEFT)
        neither = await refusal(rpc.predict(text))
    assert [reply.predictions[0].labels[0] for reply in (right, left)] == ["card", "parcel"]
    assert neither[:2] == ("INVALID_ARGUMENT", "Validation")


async def test_metadata_and_readiness_are_told(family: Family) -> None:
    async with rpc_serving(family) as rpc:
        live = await rpc.call("ServerLive", oip.ServerLiveRequest(), oip.ServerLiveResponse)
        ready = await rpc.call("ServerReady", oip.ServerReadyRequest(), oip.ServerReadyResponse)
        model = await rpc.call("ModelReady", oip.ModelReadyRequest(name="tiny"), oip.ModelReadyResponse)
        server = await rpc.call("ServerMetadata", oip.ServerMetadataRequest(), oip.ServerMetadataResponse)
        asked = oip.ModelMetadataRequest(name="tiny", version=family.version)
        tensors = await rpc.call("ModelMetadata", asked, oip.ModelMetadataResponse)
        unknown = await refusal(rpc.call("ModelReady", oip.ModelReadyRequest(name="no"), oip.ModelReadyResponse))
        await rpc.engine.drain(1)
        draining = await rpc.call("ServerReady", oip.ServerReadyRequest(), oip.ServerReadyResponse)
    assert (live.live, ready.ready, model.ready, draining.ready) == (True, True, True, False)
    assert server.name == "jouleserve"
    assert [(one.name, one.datatype, list(one.shape)) for one in (*tensors.inputs, *tensors.outputs)] == [
        ("text", "BYTES", [-1, 1]),
        ("labels", "BYTES", [-1, 3]),
        ("scores", "FP32", [-1, 3]),
    ]
    assert unknown[:2] == ("NOT_FOUND", "NotFound")


async def test_an_inference_echoes_its_id_and_answers_raw_where_it_was_asked_raw(family: Family) -> None:
    tensor = oip.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[2, 1])
    async with rpc_serving(family) as rpc:
        typed = await rpc.infer("card", "refund", id="a-1", parameters={"raw_scores": {"bool_param": True}})
        raw = await rpc.infer(inputs=[tensor], raw_input_contents=[b"\x04\0\0\0card\x06\0\0\0refund"])
        classes = [oip.ModelInferRequest.InferRequestedOutputTensor(name="scores")]
        classes[0].parameters["classification"].int64_param = 2
        best = await rpc.infer("card", outputs=classes, parameters={"raw_scores": {"bool_param": True}})
    assert (typed.id, typed.model_name, typed.model_version) == ("a-1", "tiny", family.version)
    assert list(typed.outputs[0].contents.bytes_contents)[::3] == [b"card", b"refund"]
    assert list(typed.outputs[1].contents.fp32_contents) == [1, 0, 0, 1, 0, 0]
    assert not typed.raw_output_contents
    assert raw.raw_output_contents[0].startswith(b"\x04\0\0\0card\x06\0\0\0refund")
    assert [list(output.shape) for output in raw.outputs] == [[2, 3], [2, 3]]
    assert list(best.outputs[0].contents.bytes_contents) == [b"1:0:card", b"0:1:refund"]
    assert {name: typed.parameters[name].string_param for name in ("point", "cache", "joules_source")} == {
        "point": "full",
        "cache": "miss",
        "joules_source": "estimated",
    }
    assert typed.parameters["joules"].double_param > 0


BAD: dict[str, tuple[str, bytes, str, str]] = {
    "garbage": (PREDICT, b"\xff\xff\xff", "INVALID_ARGUMENT", "Validation"),
    "no UTF-8": (PREDICT, b"\x0a\x02\xc3\x28", "INVALID_ARGUMENT", "Validation"),
    "no texts": (PREDICT, b"", "INVALID_ARGUMENT", "Empty"),
    "blank": (PREDICT, own.PredictRequest(texts=[" "]).SerializeToString(), "INVALID_ARGUMENT", "Empty"),
    "both": (
        PREDICT,
        own.PredictRequest(texts=["a"], pairs=[own.Pair(first="a", second="b")]).SerializeToString(),
        "INVALID_ARGUMENT",
        "Validation",
    ),
    "a new enum": (
        PREDICT,
        own.PredictRequest(texts=["a"], quality=77).SerializeToString(),
        "INVALID_ARGUMENT",
        "Validation",
    ),
    "too many": (PREDICT, own.PredictRequest(texts=["a"] * 65).SerializeToString(), "INVALID_ARGUMENT", "Validation"),
    "poison": (PREDICT, own.PredictRequest(texts=["poison"]).SerializeToString(), "INTERNAL", "Backend"),
    "inference garbage": (INFER, b"\x0a", "INVALID_ARGUMENT", "Validation"),
    "no model": (INFER, b"", "NOT_FOUND", "NotFound"),
    "no inputs": (INFER, oip.ModelInferRequest(model_name="tiny").SerializeToString(), "INVALID_ARGUMENT", "Empty"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_request_is_refused_by_the_table_and_not_as_the_servers_fault(family: Family, case: str) -> None:
    path, message, code, error_type = BAD[case]
    async with rpc_serving(family) as rpc:
        assert (await refusal(rpc.raw(path, message)))[:2] == (code, error_type)
        assert (await rpc.predict("card")).predictions[0].labels[0] == "card"


async def test_a_message_over_the_limit_is_refused_unread(family: Family) -> None:
    async with rpc_serving(family) as rpc:
        code, _, _ = await refusal(rpc.predict("a" * (MAX_MESSAGE + 1)))
    assert code == "RESOURCE_EXHAUSTED"


async def test_a_compressed_message_is_refused_before_it_is_unpacked(family: Family) -> None:
    """A few kilobytes may unpack to gigabytes."""
    async with rpc_serving(family) as rpc:
        message = own.PredictRequest(texts=["a " * 10_000_000]).SerializeToString()
        assert len(gzip.compress(message)) < MAX_MESSAGE
        call = rpc.channel.unary_unary(PREDICT)(message, timeout=20, compression=grpc.Compression.Gzip)
        code, _, _ = await refusal(call)
        assert code in ("UNIMPLEMENTED", "RESOURCE_EXHAUSTED")
        assert not rpc.usage.requests


async def test_an_overloaded_server_says_when_to_come_back(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with rpc_serving(held, max_queue_requests=1) as rpc:
        first = asyncio.ensure_future(rpc.predict("w1"))
        await until(lambda: bool(gates["full"].batches))
        second = asyncio.ensure_future(rpc.predict("w2"))
        await until(lambda: rpc.engine.queued == 1)
        code, error_type, trailing = await refusal(rpc.predict("w3"))
        gates["full"].gate.set()
        await asyncio.gather(first, second)
    assert (code, error_type) == ("RESOURCE_EXHAUSTED", "Overloaded")
    assert int(trailing["retry-after"]) >= 1
    assert int(trailing["grpc-retry-pushback-ms"]) == 1000 * int(trailing["retry-after"])


@pytest.mark.parametrize("how", ["cancels", "deadline"])
async def test_no_forward_pass_for_a_call_whose_client_is_gone(family: Family, how: str) -> None:
    held, gates = gated(family)
    full = gates["full"]
    full.gate.clear()
    async with rpc_serving(held) as rpc:
        busy = asyncio.ensure_future(rpc.predict("w1"))
        await until(lambda: bool(full.batches))
        gone = rpc.channel.unary_unary(PREDICT)(
            own.PredictRequest(texts=["w2"]).SerializeToString(), timeout=0.3 if how == "deadline" else 20
        )
        await until(lambda: rpc.engine.queued == 1)
        if how == "cancels":
            gone.cancel()
        with pytest.raises(asyncio.CancelledError if how == "cancels" else grpc.aio.AioRpcError):
            await gone
        await until(lambda: rpc.engine.active == 1)
        full.gate.set()
        await busy
        await rpc.predict("w3")
    assert sum(full.batches) == 2  # w1 and w3


async def test_the_servers_own_time_limit_is_told_as_such(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with rpc_serving(held, request_timeout_s=0.05) as rpc:
        outcome = await refusal(rpc.predict("w1"))
        gates["full"].gate.set()
    assert outcome[:2] == ("DEADLINE_EXCEEDED", "Timeout")


async def test_calls_are_admitted_by_key_and_rate_and_refusals_are_counted(family: Family, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    keys.write_text(f"me: sha256:{digest}\n")
    keys.chmod(0o600)
    guard = Guard(keys, RateLimit(0.001, 2), clock=lambda: 1000.0)
    key = (("authorization", "Bearer secret"),)
    async with rpc_serving(family, guard) as rpc:
        missing = await refusal(rpc.predict("card"))
        wrong = await refusal(rpc.predict("card", metadata=(("authorization", "Bearer other"),)))
        answered = await rpc.predict("card", "refund", metadata=key)
        limited = await refusal(rpc.predict("card", metadata=key))
        refused = rpc.usage.outcomes["refused"]
    assert missing[:2] == wrong[:2] == ("UNAUTHENTICATED", "Unauthenticated")
    assert len(answered.predictions) == 2
    assert limited[:2] == ("RESOURCE_EXHAUSTED", "RateLimited")
    assert "retry-after" in limited[2]
    assert refused == 3


async def test_what_was_accepted_is_answered_when_the_server_stops_and_nothing_after(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with rpc_serving(held) as rpc:
        accepted = asyncio.ensure_future(rpc.predict("card"))
        await until(lambda: bool(gates["full"].batches))
        await rpc.server.say_stopping()
        draining = asyncio.ensure_future(rpc.engine.drain(10))
        await asyncio.sleep(0)
        late = await refusal(rpc.predict("refund"))
        gates["full"].gate.set()
        assert await draining
        await rpc.server.stop()
        assert (await accepted).predictions[0].labels[0] == "card"
        after = await refusal(rpc.predict("refund"))
    assert late[:2] == ("UNAVAILABLE", "Unhealthy")
    assert "retry-after" in late[2]
    assert after[0] == "UNAVAILABLE"


def test_every_error_of_the_table_has_a_status_that_grpc_knows() -> None:
    for kind, row in ERRORS.items():
        assert issubclass(kind, EngineError)
        assert grpc.StatusCode[row.grpc_code] is not grpc.StatusCode.OK


async def test_a_failure_of_ours_is_told_without_its_words(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("server.rpc.predictor.render", broken)
    async with rpc_serving(family) as rpc:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rpc.predict("card")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (caught.value.details() or "")


async def test_several_servers_share_a_port(family: Family) -> None:
    async with rpc_serving(family) as rpc:
        port = int(rpc.server._address.rsplit(":", 1)[1])
        from server.api.replies import Replies
        from server.rpc.server import RpcServer
        from tests.support.rpc import Meter

        other = RpcServer(Replies(rpc.engine, Meter(), 1000, rpc.usage), "127.0.0.1", port, 1000)
        await other.start()
        reply = await rpc.predict("card")
        await other.stop()
        assert reply.predictions[0].labels[0] == "card"
