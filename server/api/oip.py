"""Open Inference Protocol v2: what its requests mean here and what the tensors of a reply hold; no syntax, no I/O.

One input, `text`: BYTES of shape [n] or [n, 1] (texts) or [n, 2] (pairs). Two outputs, aligned and best first: `labels`
(BYTES) and `scores` (FP32), both of shape [n, labels]. An output that is asked for with the parameter `classification`
k holds BYTES "score:index:label" of the k best instead, shape [n, k]; index is that of the manifest. A regression has
one label, and its score is the number that it answers, as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from struct import pack
from typing import Any, NamedTuple

from models.manifest import Manifest
from server.api.errors import MalformedRequest, UnknownModel
from server.engine.engine import Answer
from server.engine.errors import EmptyInput, InputTooLarge, InvalidInput
from server.engine.family import Family
from server.engine.scores import best_first, shown_scores
from server.engine.tokenizer import Text, Truncation
from server.shaping.policy import CLASSES, QualityClass

SERVER_NAME = "jouleserve"
EXTENSIONS = ("classification", "binary_tensor_data")
PLATFORM = "onnxruntime_onnx"
INPUT, LABELS, SCORES = "text", "labels", "scores"
PARAMETERS = ("quality", "truncate", "truncation_direction", "raw_scores")
BINARY_OUTPUT = "binary_data_output"

Parameters = Mapping[str, Any]


class Tensor(NamedTuple):
    """An input tensor; `elements` in row-major order."""

    name: str
    datatype: str
    shape: Sequence[int]
    elements: Sequence[str]


class Wanted(NamedTuple):
    """An output that is asked for: its k best classes (None for all labels as they are), and whether in binary."""

    name: str
    classes: int | None = None
    binary: bool = False


class Output(NamedTuple):
    """An output tensor of a reply; `values` in row-major order, text where the datatype is BYTES."""

    name: str
    datatype: str
    shape: list[int]
    values: list[Any]


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request that can be answered. `truncate` is the end at which a text that is too long is cut, None to refuse."""

    id: str
    texts: list[Text]
    quality: QualityClass
    truncate: Truncation | None
    raw_scores: bool
    outputs: tuple[Wanted, ...]


def make_request(
    request_id: str, parameters: Parameters, tensor: Tensor, outputs: Sequence[Wanted], max_texts: int
) -> InferRequest:
    """Read the meaning of a request of at most `max_texts` texts. Raises an EngineError, naming field and remedy."""
    unknown = parameters.keys() - {*PARAMETERS, BINARY_OUTPUT}
    if unknown:
        raise MalformedRequest(f"parameters.{min(unknown)[:40]}: unknown; known are {', '.join(PARAMETERS)}")
    quality = parameters.get("quality", "standard")
    if quality not in CLASSES:
        raise MalformedRequest(f"parameters.quality: must be one of {', '.join(CLASSES)}")
    side = parameters.get("truncation_direction", "right")
    if side not in ("left", "right"):
        raise MalformedRequest("parameters.truncation_direction: must be 'left' or 'right'")
    truncate = side if flag(parameters, "truncate") else None
    for wanted in outputs:
        _check_wanted(wanted)
    if len({wanted.name for wanted in outputs}) < len(outputs):
        raise MalformedRequest(f"outputs: '{outputs[0].name}' is asked for twice; ask for it once")
    texts = _texts_of(tensor, max_texts)
    return InferRequest(request_id, texts, quality, truncate, flag(parameters, "raw_scores"), tuple(outputs))


def check_counts(inputs: int, outputs: int) -> None:
    """Raise EmptyInput or MalformedRequest unless there is one input tensor, and no more outputs than there are."""
    if not inputs:
        raise EmptyInput(f"inputs: none; send one tensor, called '{INPUT}'")
    if inputs > 1:
        raise MalformedRequest(f"inputs: {inputs} tensors; send one, called '{INPUT}'")
    if outputs > 2:
        raise MalformedRequest(f"outputs: {outputs} are asked for; there are two, {LABELS} and {SCORES}")


def flag(parameters: Parameters, name: str, where: str = "parameters") -> bool:
    """A parameter that is true or false (not there: false). Raises MalformedRequest."""
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise MalformedRequest(f"{where}.{name}: must be true or false")
    return value


def classes_of(parameters: Parameters, where: str) -> int | None:
    """The parameter `classification`; None where it is not there. Raises MalformedRequest."""
    value = parameters.get("classification")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MalformedRequest(f"{where}.parameters.classification: must be a whole number of classes, 1 or more")
    return value


def _check_wanted(wanted: Wanted) -> None:
    if wanted.name not in (LABELS, SCORES):
        raise MalformedRequest(f"outputs: no output is called '{wanted.name[:40]}'; there are {LABELS} and {SCORES}")
    if wanted.classes is not None and wanted.name != SCORES:
        raise InvalidInput(f"outputs: classification belongs to '{SCORES}'; ask for it there")


def _texts_of(tensor: Tensor, max_texts: int) -> list[Text]:
    if tensor.name != INPUT:
        raise MalformedRequest(f"inputs: no input is called '{tensor.name[:40]}'; send '{INPUT}'")
    if tensor.datatype != "BYTES":
        raise MalformedRequest(f"inputs.{INPUT}: datatype '{tensor.datatype[:16]}'; texts are BYTES")
    shape, elements = tensor.shape, tensor.elements
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] in (1, 2))) or shape[0] < 0:
        raise MalformedRequest(f"inputs.{INPUT}: send shape [n] or [n, 1] for texts, [n, 2] for pairs")
    if shape[0] > max_texts:
        raise too_many(shape[0], max_texts)
    if prod(shape) != len(elements):
        raise MalformedRequest(f"inputs.{INPUT}: shape says {prod(shape)} elements, data holds {len(elements)}")
    if not elements:
        raise EmptyInput(f"inputs.{INPUT}: no elements; send at least one text")
    if len(shape) == 2 and shape[1] == 2:
        return [Text(first, second) for first, second in zip(elements[::2], elements[1::2], strict=True)]
    return [Text(text) for text in elements]


def too_many(texts: int, most: int) -> InputTooLarge:
    """The error of a request with more texts than it may hold."""
    return InputTooLarge(f"inputs.{INPUT}: {texts} texts in one request; the limit is {most}")


def check_elements(count: int, max_texts: int) -> None:
    """Raise InputTooLarge for more elements than even pairs could need, before they are looked at one by one."""
    if count > 2 * max_texts:
        raise too_many(count, max_texts)


def check_model(family: Family, name: str, version: str | None) -> None:
    """Raises UnknownModel unless this model, and this version if one is given, is served."""
    if name != family.manifest.family:
        raise UnknownModel(f"model '{name[:64]}' is not served here; '{family.manifest.family}' is")
    if version and version != family.version:
        raise UnknownModel(f"version '{version[:64]}' of model '{name}' is not served here; '{family.version}' is")


def tensors_of(manifest: Manifest) -> tuple[list[Output], list[Output]]:
    """Inputs and outputs of the model's metadata, without values."""
    inputs = [Output(INPUT, "BYTES", [-1, 2 if manifest.pair else 1], [])]
    labels = len(manifest.labels)
    return inputs, [Output(LABELS, "BYTES", [-1, labels], []), Output(SCORES, "FP32", [-1, labels], [])]


def make_outputs(request: InferRequest, answers: Sequence[Answer], manifest: Manifest) -> list[Output]:
    """The tensors of a reply: those that were asked for, or all."""
    labels = manifest.labels
    scored = [shown_scores(answer.logits, manifest, raw=request.raw_scores) for answer in answers]
    orders = [best_first(scores) for scores in scored]
    outputs = []
    for wanted in request.outputs or (Wanted(LABELS), Wanted(SCORES)):
        count = min(wanted.classes or len(labels), len(labels))
        shape = [len(answers), count]
        ranked = chain.from_iterable(
            ((scores, index) for index in order[:count]) for scores, order in zip(scored, orders, strict=True)
        )
        if wanted.classes is not None:
            texts = [f"{scores[index]:.9g}:{index}:{labels[index]}" for scores, index in ranked]
            outputs.append(Output(wanted.name, "BYTES", shape, texts))
        elif wanted.name == LABELS:
            outputs.append(Output(LABELS, "BYTES", shape, [labels[index] for _, index in ranked]))
        else:
            outputs.append(Output(SCORES, "FP32", shape, [scores[index] for scores, index in ranked]))
    return outputs


def to_raw(output: Output) -> bytes:
    """A tensor's elements as the binary extension and gRPC's raw contents have them, little-endian."""
    if output.datatype == "FP32":
        return pack(f"<{len(output.values)}f", *output.values)
    encoded = (value.encode() for value in output.values)
    return b"".join(part for one in encoded for part in (len(one).to_bytes(4, "little"), one))


def from_raw(raw: bytes, max_texts: int) -> list[str]:
    """The elements of a raw BYTES tensor: each behind its length. Raises MalformedRequest or InputTooLarge."""
    elements: list[str] = []
    at, end = 0, len(raw)
    while at < end:
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        if start > end or at > end:
            raise MalformedRequest(f"inputs.{INPUT}: the raw data ends within an element; send 4 bytes of length each")
        elements.append(decode(raw[start:at]))
        check_elements(len(elements), max_texts)
    return elements


def decode(element: bytes) -> str:
    """A BYTES element as text. Raises MalformedRequest if it is not UTF-8."""
    try:
        return element.decode()
    except UnicodeDecodeError:
        raise MalformedRequest(f"inputs.{INPUT}: an element is not UTF-8; encode texts as UTF-8") from None
