"""`inference.GRPCInferenceService`: the Open Inference Protocol v2 over gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from server.api import oip
from server.api.asking import Answered, ask
from server.api.errors import MalformedRequest
from server.api.oip_json import parameters_of
from server.api.replies import Replies
from server.engine.family import Family
from server.rpc.arrival import Arrivals
from server.rpc.calls import Call, unary
from server.rpc.proto import open_inference_pb2 as pb

SERVICE: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
OPEN = {"ServerLive", "ServerReady"}
"""Answered without an API key, as `/v2/health/*` is."""


def inference_methods(replies: Replies, arrivals: Arrivals, release: str) -> dict[str, Any]:
    """The service's handlers by method name."""
    engine = replies.engine

    async def server_live(_request: Message, _call: Call) -> Message:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(_request: Message, _call: Call) -> Message:
        return pb.ServerReadyResponse(ready=engine.ready)

    async def model_ready(request: pb.ModelReadyRequest, _call: Call) -> Message:
        oip.check_model(engine.family, request.name, request.version)
        return pb.ModelReadyResponse(ready=engine.ready)

    async def server_metadata(_request: Message, _call: Call) -> Message:
        return pb.ServerMetadataResponse(name=oip.SERVER_NAME, version=release, extensions=oip.EXTENSIONS)

    async def model_metadata(request: pb.ModelMetadataRequest, _call: Call) -> Message:
        oip.check_model(engine.family, request.name, request.version)
        return _metadata(engine.family)

    async def model_infer(request: pb.ModelInferRequest, call: Call) -> Message:
        oip.check_model(engine.family, request.model_name, request.model_version)
        asked = parse_infer(request, engine.limits.max_texts_per_request)
        answered = await ask(replies, asked.texts, asked.quality, asked.truncate, call.client)
        return render_infer(asked, answered, raw=bool(request.raw_input_contents))

    methods: dict[str, tuple[type[Message], Any]] = {
        "ServerLive": (pb.ServerLiveRequest, server_live),
        "ServerReady": (pb.ServerReadyRequest, server_ready),
        "ModelReady": (pb.ModelReadyRequest, model_ready),
        "ServerMetadata": (pb.ServerMetadataRequest, server_metadata),
        "ModelMetadata": (pb.ModelMetadataRequest, model_metadata),
        "ModelInfer": (pb.ModelInferRequest, model_infer),
    }
    return {
        name: unary(replies, arrivals, f"{SERVICE}/{name}", request_type, method, needs_key=name not in OPEN)
        for name, (request_type, method) in methods.items()
    }


def parse_infer(request: pb.ModelInferRequest, max_texts: int) -> oip.InferRequest:
    """Read a message of at most `max_texts` texts. Raises an EngineError, naming the field and the remedy."""
    oip.check_counts(len(request.inputs), len(request.outputs))
    raw = request.raw_input_contents
    if len(raw) > 1:
        raise MalformedRequest(f"raw_input_contents: {len(raw)} for one input; send one for each")
    tensor = _parse_input(request.inputs[0], raw[0] if raw else None, max_texts)
    outputs = [_parse_wanted(one) for one in request.outputs]
    return oip.make_request(request.id, _parameters(request.parameters), tensor, outputs, max_texts)


def _parse_input(tensor: Any, raw: bytes | None, max_texts: int) -> oip.Tensor:
    if tensor.parameters:
        raise MalformedRequest(f"inputs.{tensor.name[:40]}.parameters: none is known here; leave them out")
    if tensor.datatype != "BYTES":
        elements: list[str] = []  # refused for its datatype
    elif raw is None:
        contents = tensor.contents.bytes_contents
        oip.check_elements(len(contents), max_texts)
        elements = [oip.decode(one) for one in contents]
    elif tensor.HasField("contents"):
        raise MalformedRequest("inputs: contents and raw_input_contents; send one of the two")
    else:
        elements = oip.from_raw(raw, max_texts)
    return oip.Tensor(tensor.name, tensor.datatype, tensor.shape, elements)


def _parse_wanted(output: Any) -> oip.Wanted:
    parameters = _parameters(output.parameters)
    where = f"outputs.{output.name[:40]}"
    # Over gRPC the form of the input decides that of the output, whatever HTTP's flag says.
    if unknown := parameters.keys() - {"classification", "binary_data"}:
        raise MalformedRequest(f"{where}.parameters.{min(unknown)[:40]}: unknown; classification is known")
    return oip.Wanted(output.name, oip.classes_of(parameters, where))


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise MalformedRequest(f"parameters.{name[:40]}: has no value")
        values[name] = getattr(parameter, choice)
    return values


def render_infer(asked: oip.InferRequest, answered: Answered, *, raw: bool) -> pb.ModelInferResponse:
    """The reply's message; its tensors are raw where the request's were."""
    family = answered.family
    outputs = oip.make_outputs(asked, answered.answers, family.manifest)
    reply = pb.ModelInferResponse(
        model_name=family.manifest.family,
        model_version=family.version,
        id=asked.id,
        parameters={name: _parameter(value) for name, value in parameters_of(answered.told).items()},
        outputs=[_tensor(one, raw) for one in outputs],
    )
    if raw:
        reply.raw_output_contents.extend(oip.to_raw(one) for one in outputs)
    return reply


def _parameter(value: str | float) -> pb.InferParameter:
    if isinstance(value, str):
        return pb.InferParameter(string_param=value)
    return pb.InferParameter(int64_param=value) if isinstance(value, int) else pb.InferParameter(double_param=value)


def _tensor(output: oip.Output, raw: bool) -> pb.ModelInferResponse.InferOutputTensor:
    contents = None
    if not raw and output.datatype == "FP32":
        contents = pb.InferTensorContents(fp32_contents=output.values)
    elif not raw:
        contents = pb.InferTensorContents(bytes_contents=[value.encode() for value in output.values])
    return pb.ModelInferResponse.InferOutputTensor(
        name=output.name, datatype=output.datatype, shape=output.shape, contents=contents
    )


def _metadata(family: Family) -> pb.ModelMetadataResponse:
    inputs, outputs = oip.tensors_of(family.manifest)
    return pb.ModelMetadataResponse(
        name=family.manifest.family,
        versions=[family.version],
        platform=oip.PLATFORM,
        inputs=_described(inputs),
        outputs=_described(outputs),
    )


def _described(tensors: Sequence[oip.Output]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    metadata = pb.ModelMetadataResponse.TensorMetadata
    return [metadata(name=one.name, datatype=one.datatype, shape=one.shape) for one in tensors]
