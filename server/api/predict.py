"""`POST /predict` in the shape of text-embeddings-inference: request parsing and reply building, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from models.manifest import Manifest
from server.api.errors import MalformedRequest
from server.api.http import Headers
from server.engine.engine import Answer
from server.engine.errors import EmptyInput
from server.engine.scores import best_first, probabilities
from server.engine.tokenizer import Text, Truncation
from server.shaping.policy import CLASSES, QualityClass

FIELDS = {"inputs", "raw_scores", "truncate", "truncation_direction"}


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """A parsed body. `batch` tells whether the reply is a list of results or one result; `truncate` at which end a text
    that is too long is cut, None to refuse it."""

    texts: list[Text]
    batch: bool
    raw_scores: bool
    truncate: Truncation | None


def parse_predict(body: bytes) -> PredictRequest:
    """Read a body. Raises MalformedRequest or EmptyInput, naming the field and the remedy."""
    if not body:
        raise EmptyInput('body: empty; send {"inputs": "a text"}')
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"body: not JSON ({error})") from None
    if not isinstance(document, dict):
        raise MalformedRequest('body: not a JSON object; send {"inputs": "a text"}')
    if "inputs" not in document:
        raise MalformedRequest("inputs: missing; give a text, a pair of texts or a list of [text] or [text, text]")
    unknown = document.keys() - FIELDS
    if unknown:
        raise MalformedRequest(f"{min(unknown)[:40]}: unknown field; known are {', '.join(sorted(FIELDS))}")
    texts, batch = _parse_inputs(document["inputs"])
    side = _parse_side(document.get("truncation_direction", "right"))
    truncate = side if _parse_flag(document, "truncate") else None
    return PredictRequest(texts, batch, _parse_flag(document, "raw_scores"), truncate)


def _parse_inputs(inputs: Any) -> tuple[list[Text], bool]:
    if isinstance(inputs, str):
        return [Text(inputs)], False
    if isinstance(inputs, list):
        if not inputs:
            raise EmptyInput("inputs: an empty list; give at least one text")
        if isinstance(inputs[0], str):
            return [_parse_text(inputs, "inputs")], False
        return [_parse_text(item, f"inputs[{index}]") for index, item in enumerate(inputs)], True
    raise MalformedRequest("inputs: must be a string, [first, second] or a list of [text] or [first, second]")


def _parse_text(item: Any, where: str) -> Text:
    if not isinstance(item, list) or not 1 <= len(item) <= 2 or not all(isinstance(part, str) for part in item):
        raise MalformedRequest(
            f"{where}: must be [text] or [first, second]; to send several texts wrap each in a list of its own"
        )
    return Text(item[0], item[1] if len(item) == 2 else None)


def _parse_flag(document: dict[str, Any], name: str) -> bool:
    value = document.get(name)
    if value is None:  # text-embeddings-inference takes null for "not said", too
        return False
    if not isinstance(value, bool):
        raise MalformedRequest(f"{name}: must be true or false")
    return value


def _parse_side(value: Any) -> Truncation:
    if value in ("right", "Right"):
        return "right"
    if value in ("left", "Left"):
        return "left"
    raise MalformedRequest("truncation_direction: must be 'left' or 'right'")


def parse_quality(value: bytes | None) -> QualityClass:
    """The class named by `X-Quality`; `standard` where there is none. Raises MalformedRequest on another word."""
    if value is None:
        return "standard"
    word = value.decode("latin-1").strip().lower()
    for quality in CLASSES:
        if word == quality:
            return quality
    raise MalformedRequest(f"X-Quality: '{word[:40]}' is none of {', '.join(CLASSES)}")


def render_predictions(request: PredictRequest, answers: list[Answer], manifest: Manifest) -> bytes:
    """The reply's JSON: per text every label with its score, best first."""
    labels = manifest.labels
    results = []
    for answer in answers:
        scores = answer.logits.tolist() if request.raw_scores else probabilities(answer.logits)
        results.append([{"score": scores[index], "label": labels[index]} for index in best_first(scores)])
    return orjson.dumps(results if request.batch else results[0])


def answer_headers(
    answers: list[Answer], joules_per_cpu_second: float | None, sources: tuple[str, ...], version: str
) -> Headers:
    """What the reply says of itself. Joules are provisional; absent where nothing measures them."""
    first = answers[0]
    states = {answer.cache for answer in answers}
    headers: Headers = [
        (b"x-jouleserve-variant", _join(answer.variant for answer in answers)),
        (b"x-jouleserve-point", _join(answer.point for answer in answers)),
        (b"x-jouleserve-cache", b"mixed" if len(states) > 1 else first.cache.encode()),
        (b"x-jouleserve-reason", first.reason.encode()),
        (b"x-jouleserve-version", version.encode()),
    ]
    if joules_per_cpu_second is not None:
        joules = sum(answer.cpu_ns for answer in answers) / 1e9 * joules_per_cpu_second
        headers.append((b"x-jouleserve-joules", b"%.3e" % joules))
        headers.append((b"x-jouleserve-joules-source", "+".join(sources).encode()))
    return headers


def _join(names: Any) -> bytes:
    return ",".join(dict.fromkeys(names)).encode()
