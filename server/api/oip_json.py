"""Open Inference Protocol v2 as JSON, with the binary tensor extension; no I/O.

With the extension, a body is JSON of `Inference-Header-Content-Length` bytes and then the tensors whose parameter
`binary_data_size` says how many bytes of it are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from server.api.errors import MalformedRequest
from server.api.oip import (
    BINARY_OUTPUT,
    EXTENSIONS,
    LABELS,
    PLATFORM,
    SCORES,
    SERVER_NAME,
    InferRequest,
    Output,
    Tensor,
    Wanted,
    check_counts,
    check_elements,
    classes_of,
    flag,
    from_raw,
    make_request,
    tensors_of,
    to_raw,
)
from server.api.told import Told
from server.engine.errors import EmptyInput
from server.engine.family import Family

FIELDS = ("id", "inputs", "outputs", "parameters")


def parse_infer(body: bytes, header_length: bytes | None, max_texts: int) -> InferRequest:
    """Read a body of at most `max_texts` texts; `header_length` is the value of Inference-Header-Content-Length, None
    where it is not sent. Raises an EngineError, naming the field and the remedy."""
    if not body:
        raise EmptyInput("body: empty; send an inference request of the Open Inference Protocol")
    text, raw = _split(body, header_length)
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"body: not JSON ({error})") from None
    fields = _object(document, "body", FIELDS)
    request_id = fields.get("id", "")
    if not isinstance(request_id, str):
        raise MalformedRequest("id: must be a string")
    parameters = _object(fields.get("parameters", {}), "parameters")
    inputs, asked_for = _list(fields, "inputs"), _list(fields, "outputs")
    check_counts(len(inputs), len(asked_for))
    tensor = _parse_input(inputs[0], "inputs[0]", raw, max_texts)
    if raw:
        raise MalformedRequest(f"body: {len(raw)} bytes after the last tensor; state them as its binary_data_size")
    binary = flag(parameters, BINARY_OUTPUT)
    outputs = [_parse_wanted(one, f"outputs[{index}]", binary) for index, one in enumerate(asked_for)]
    if not outputs and binary:
        outputs = [Wanted(LABELS, binary=True), Wanted(SCORES, binary=True)]
    return make_request(request_id, parameters, tensor, outputs, max_texts)


def _split(body: bytes, header_length: bytes | None) -> tuple[bytes, bytearray]:
    if header_length is None:
        return body, bytearray()
    if not header_length.isdigit() or len(header_length) > 10 or int(header_length) > len(body):
        raise MalformedRequest("Inference-Header-Content-Length: must be the length of the JSON part of the body")
    length = int(header_length)
    return body[:length], bytearray(body[length:])


def _parse_input(one: Any, where: str, raw: bytearray, max_texts: int) -> Tensor:
    """Read an input tensor, taking its part off `raw`."""
    fields = _object(one, where, ("name", "shape", "datatype", "parameters", "data"))
    name, datatype, shape = fields.get("name"), fields.get("datatype"), fields.get("shape")
    if not isinstance(name, str) or not isinstance(datatype, str):
        raise MalformedRequest(f"{where}: name and datatype must be strings")
    if not isinstance(shape, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in shape):
        raise MalformedRequest(f"{where}.shape: must be a list of whole numbers")
    parameters = _object(fields.get("parameters", {}), f"{where}.parameters", ("binary_data_size",))
    size = parameters.get("binary_data_size")
    if size is None:
        return Tensor(name, datatype, shape, _elements(fields.get("data"), f"{where}.data", max_texts))
    if "data" in fields:
        raise MalformedRequest(f"{where}: data and binary_data_size; send one of the two")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(raw):
        raise MalformedRequest(f"{where}.parameters.binary_data_size: {len(raw)} bytes are left of the body")
    mine = bytes(raw[:size])
    del raw[:size]
    # Its meaning as text is judged where the datatype is.
    return Tensor(name, datatype, shape, from_raw(mine, max_texts) if datatype == "BYTES" else [])


def _elements(data: Any, where: str, max_texts: int) -> list[str]:
    """Elements of a flat list or of one list a row."""
    if not isinstance(data, list):
        raise MalformedRequest(f"{where}: missing or no list; give the texts in row-major order")
    check_elements(len(data), max_texts)
    flat: list[str] = []
    for one in data:
        flat.extend(one) if isinstance(one, list) else flat.append(one)
    check_elements(len(flat), max_texts)
    if not all(isinstance(text, str) for text in flat):
        raise MalformedRequest(f"{where}: elements of a BYTES tensor must be strings")
    return flat


def _parse_wanted(one: Any, where: str, binary: bool) -> Wanted:
    fields = _object(one, where, ("name", "parameters"))
    if not isinstance(fields.get("name"), str):
        raise MalformedRequest(f"{where}.name: must be a string")
    parameters = _object(fields.get("parameters", {}), f"{where}.parameters", ("classification", "binary_data"))
    if "binary_data" in parameters:
        binary = flag(parameters, "binary_data", f"{where}.parameters")
    return Wanted(fields["name"], classes_of(parameters, where), binary)


def _object(value: Any, where: str, known: Sequence[str] = ()) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MalformedRequest(f"{where}: must be a JSON object")
    unknown = value.keys() - set(known) if known else ()
    if unknown:
        raise MalformedRequest(f"{where}.{min(unknown)[:40]}: unknown field; known are {', '.join(known)}")
    return value


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise MalformedRequest(f"{name}: must be a list of tensors")
    return value


def render_infer(request: InferRequest, outputs: Sequence[Output], told: Told, family: Family) -> tuple[bytes, int]:
    """A reply's body, and the length of its JSON part (the whole body if no output is binary)."""
    tensors, tail = [], []
    for position, output in enumerate(outputs):
        tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if request.outputs and request.outputs[position].binary:
            tail.append(to_raw(output))
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = output.values
        tensors.append(tensor)
    document: dict[str, Any] = {"model_name": family.manifest.family, "model_version": family.version}
    if request.id:
        document["id"] = request.id
    document["parameters"] = parameters_of(told)
    document["outputs"] = tensors
    head = orjson.dumps(document)
    return b"".join((head, *tail)), len(head)


def parameters_of(told: Told) -> dict[str, str | float]:
    """What a reply's `parameters` say; what nothing measures is absent. The version has a field of its own."""
    return {name: value for name, value in told._asdict().items() if value is not None and name != "version"}


def server_metadata(release: str) -> dict[str, Any]:
    """The answer of `/v2`."""
    return {"name": SERVER_NAME, "version": release, "extensions": list(EXTENSIONS)}


def model_metadata(family: Family) -> dict[str, Any]:
    """The answer of `/v2/models/{name}`."""
    inputs, outputs = (
        [{"name": one.name, "datatype": one.datatype, "shape": one.shape} for one in tensors]
        for tensors in tensors_of(family.manifest)
    )
    return {
        "name": family.manifest.family,
        "versions": [family.version],
        "platform": PLATFORM,
        "inputs": inputs,
        "outputs": outputs,
    }
