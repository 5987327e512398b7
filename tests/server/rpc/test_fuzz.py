"""Whatever bytes come, the gRPC services blame the client or answer, and go on."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engine.family import Family
from server.rpc.proto import open_inference_pb2 as oip
from server.rpc.proto import predictor_pb2 as own
from tests.support.rpc import INFER, PREDICT, rpc_serving

SERVICE = "/inference.GRPCInferenceService"
METHODS = [PREDICT, *(f"{SERVICE}/{method.name}" for method in
           oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods)]  # fmt: skip
BLAMED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}

# Four tests; `make fuzz` asks for 10,000 cases in all.
EXAMPLES = int(os.environ.get("JOULESERVE_FUZZ_EXAMPLES", "300"))
patient = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
words = st.one_of(st.sampled_from(["card", "my parcel", " ", "", "w1 " * 100, "\x00", "é"]), st.text(max_size=20))


@pytest.fixture(scope="module")
def channel(family: Family) -> Iterator[Any]:
    """A channel to a server in a thread of its own."""
    ready, done, found = threading.Event(), threading.Event(), {}

    async def run() -> None:
        async with rpc_serving(family) as rpc:
            found["address"] = rpc.server._address
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(20)
    with grpc.insecure_channel(found["address"]) as opened:
        yield opened
        message = own.PredictRequest(texts=["my card"]).SerializeToString()
        assert own.PredictReply.FromString(opened.unary_unary(PREDICT)(message)).predictions[0].labels[0] == "card"
    done.set()
    thread.join(20)


def code_of(channel: Any, path: str, message: bytes) -> str:
    """The status of a call."""
    try:
        channel.unary_unary(path)(message, timeout=20)
    except grpc.RpcError as error:
        name: str = error.code().name  # type: ignore[attr-defined]
        return name
    return "OK"


@patient
@given(st.sampled_from(METHODS), st.binary(max_size=200))
def test_garbage_is_the_clients_fault(channel: Any, path: str, message: bytes) -> None:
    assert code_of(channel, path, message) in BLAMED


predictions = st.builds(
    own.PredictRequest,
    texts=st.lists(words, max_size=5),
    pairs=st.lists(st.builds(own.Pair, first=words, second=words), max_size=2),
    quality=st.integers(-1, 5),
    truncate=st.integers(-1, 4),
    raw_scores=st.booleans(),
)
values = st.one_of(
    st.builds(oip.InferParameter, bool_param=st.booleans()),
    st.builds(oip.InferParameter, int64_param=st.integers(-3, 9)),
    st.builds(oip.InferParameter, string_param=st.sampled_from(["eco", "strict", "left", "right", "up"])),
    st.builds(oip.InferParameter, double_param=st.floats()),
    st.just(oip.InferParameter()),
)
names = st.sampled_from(["quality", "truncate", "truncation_direction", "raw_scores", "classification", "other"])
parameters = st.dictionaries(names, values, max_size=2)
inputs = st.builds(
    oip.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["text", "text", "text", "x"]),
    datatype=st.sampled_from(["BYTES", "BYTES", "BYTES", "FP32", ""]),
    shape=st.lists(st.integers(-2, 4), max_size=3),
    contents=st.builds(oip.InferTensorContents, bytes_contents=st.lists(words.map(str.encode) | st.binary(max_size=8))),
    parameters=st.dictionaries(names, values, max_size=1),
)
outputs = st.builds(
    oip.ModelInferRequest.InferRequestedOutputTensor,
    name=st.sampled_from(["labels", "scores", "other"]),
    parameters=parameters,
)
inferences = st.builds(
    oip.ModelInferRequest,
    model_name=st.sampled_from(["tiny", "tiny", "tiny", "other"]),
    model_version=st.sampled_from(["", "", "", "9"]),
    id=words,
    parameters=parameters,
    inputs=st.lists(inputs, min_size=1, max_size=2),
    outputs=st.lists(outputs, max_size=3),
    raw_input_contents=st.lists(st.binary(max_size=30) | st.just(b"\x04\0\0\0card"), max_size=2),
)


@patient
@given(predictions)
def test_messages_of_the_right_type_are_answered_or_refused_with_a_reason(
    channel: Any, message: own.PredictRequest
) -> None:
    assert code_of(channel, PREDICT, message.SerializeToString()) in BLAMED


@patient
@given(inferences)
def test_inferences_are_answered_or_refused_with_a_reason(channel: Any, message: Message) -> None:
    assert code_of(channel, INFER, message.SerializeToString()) in BLAMED


shaped = st.lists(words, min_size=1, max_size=4)


@patient
@given(shaped, st.booleans())
def test_both_services_and_both_forms_say_the_same_of_the_same_texts(
    channel: Any, texts: list[str], raw_scores: bool
) -> None:
    data = [text.encode() for text in texts]
    tensor = oip.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[len(texts)])
    asked = {"raw_scores": oip.InferParameter(bool_param=raw_scores)}
    raw = b"".join(len(one).to_bytes(4, "little") + one for one in data)
    raw_request = oip.ModelInferRequest(model_name="tiny", inputs=[tensor], parameters=asked, raw_input_contents=[raw])
    tensor.contents.bytes_contents.extend(data)
    typed_request = oip.ModelInferRequest(model_name="tiny", inputs=[tensor], parameters=asked)
    own_request = own.PredictRequest(texts=texts, raw_scores=raw_scores)
    codes = [
        code_of(channel, path, message.SerializeToString())
        for path, message in ((PREDICT, own_request), (INFER, typed_request), (INFER, raw_request))
    ]
    assert len(set(codes)) == 1
    if codes == ["OK"] * 3:
        mine = own.PredictReply.FromString(channel.unary_unary(PREDICT)(own_request.SerializeToString()))
        theirs = oip.ModelInferResponse.FromString(channel.unary_unary(INFER)(typed_request.SerializeToString()))
        labels = [label.encode() for one in mine.predictions for label in one.labels]
        scores = [score for one in mine.predictions for score in one.scores]
        assert list(theirs.outputs[0].contents.bytes_contents) == labels
        assert list(theirs.outputs[1].contents.fp32_contents) == scores
