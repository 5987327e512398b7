"""`POST /predict` in the shape of text-embeddings-inference: request parsing and reply building, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from models.manifest import Manifest
from server.api.errors import MalformedRequest
from server.api.http import Headers
from server.api.told import Told
from server.engine.engine import Answer
from server.engine.errors import EmptyInput, InputTooLarge
from server.engine.scores import best_first, shown_scores
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


def parse_predict(body: bytes, max_texts: int) -> PredictRequest:
    """Read a body with at most `max_texts` texts. Raises MalformedRequest, EmptyInput or InputTooLarge, naming the
    field and the remedy. Nesting is bounded by the JSON parser, which stops at 1,024 levels."""
    if not body:
        raise EmptyInput('body: empty; send {"inputs": "a text"}')
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "depth limit" in str(error):
            raise MalformedRequest("body: nested too deeply; send a list of lists of texts at most") from None
        raise MalformedRequest(f"body: not JSON ({error})") from None
    if not isinstance(document, dict):
        raise MalformedRequest('body: not a JSON object; send {"inputs": "a text"}')
    if "inputs" not in document:
        raise MalformedRequest("inputs: missing; give a text, a pair of texts or a list of [text] or [text, text]")
    unknown = document.keys() - FIELDS
    if unknown:
        raise MalformedRequest(f"{min(unknown)[:40]}: unknown field; known are {', '.join(sorted(FIELDS))}")
    texts, batch = parse_inputs(document["inputs"], max_texts)
    side = parse_side(document.get("truncation_direction", "right"))
    truncate = side if parse_flag(document, "truncate") else None
    return PredictRequest(texts, batch, parse_flag(document, "raw_scores"), truncate)


def parse_inputs(inputs: Any, max_texts: int) -> tuple[list[Text], bool]:
    """The texts of the field `inputs`, and whether it is a batch. Raises as `parse_predict` does."""
    if isinstance(inputs, str):
        return [Text(inputs)], False
    if isinstance(inputs, list):
        if not inputs:
            raise EmptyInput("inputs: an empty list; give at least one text")
        if isinstance(inputs[0], str):
            return [parse_text(inputs, "inputs")], False
        if len(inputs) > max_texts:
            raise InputTooLarge(f"inputs: {len(inputs)} texts in one request; the limit is {max_texts}")
        return [parse_text(item, f"inputs[{index}]") for index, item in enumerate(inputs)], True
    raise MalformedRequest("inputs: must be a string, [first, second] or a list of [text] or [first, second]")


def parse_text(item: Any, where: str) -> Text:
    """`[text]` or `[first, second]`. Raises MalformedRequest."""
    if not isinstance(item, list) or not 1 <= len(item) <= 2 or not all(isinstance(part, str) for part in item):
        raise MalformedRequest(
            f"{where}: must be [text] or [first, second]; to send several texts wrap each in a list of its own"
        )
    return Text(item[0], item[1] if len(item) == 2 else None)


def parse_flag(document: dict[str, Any], name: str) -> bool:
    """A field that is true, false or not said. Raises MalformedRequest."""
    value = document.get(name)
    if value is None:  # text-embeddings-inference takes null for "not said", too
        return False
    if not isinstance(value, bool):
        raise MalformedRequest(f"{name}: must be true or false")
    return value


def parse_side(value: Any) -> Truncation:
    """The end that is cut. Raises MalformedRequest."""
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
    """The reply's JSON: per text every label with its score, best first (of a regression the one number, as it is). The
    common form is kept beside a cached answer, so that a hit need not render it again."""
    kept = None if request.batch or request.raw_scores else answers[0].kept
    if kept is not None and kept.body is not None:
        return kept.body
    labels = manifest.labels
    results = []
    for answer in answers:
        scores = shown_scores(answer.logits, manifest, raw=request.raw_scores)
        results.append([{"score": scores[index], "label": labels[index]} for index in best_first(scores)])
    body = orjson.dumps(results if request.batch else results[0])
    if kept is not None:
        kept.keep_body(body)
    return body


def answer_headers(told: Told) -> Headers:
    """What the reply says of itself."""
    headers: Headers = [
        (b"x-jouleserve-variant", told.variant.encode()),
        (b"x-jouleserve-point", told.point.encode()),
        (b"x-jouleserve-cache", told.cache.encode()),
        (b"x-jouleserve-reason", told.reason.encode()),
        (b"x-jouleserve-version", told.version.encode()),
    ]
    if told.joules is not None and told.joules_source is not None:
        headers.append((b"x-jouleserve-joules", b"%.3e" % told.joules))
        headers.append((b"x-jouleserve-joules-source", told.joules_source.encode()))
    if told.joules_loaded is not None:
        headers.append((b"x-jouleserve-joules-loaded", b"%.3e" % told.joules_loaded))
    if told.saved_joules is not None:
        headers.append((b"x-jouleserve-saved-joules", b"%.3e" % told.saved_joules))
    if told.escalated is not None:
        headers.append((b"x-jouleserve-escalated", b"%d" % told.escalated))
    return headers
