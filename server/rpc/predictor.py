"""`jouleserve.v1.Predictor`: the typed call."""

from __future__ import annotations

from typing import Any, TypeVar

from server.api.asking import Answered, ask
from server.api.errors import MalformedRequest
from server.api.replies import Replies
from server.engine.errors import EmptyInput, InputTooLarge
from server.engine.scores import best_first, shown_scores
from server.engine.tokenizer import Text, Truncation
from server.rpc.arrival import Arrivals
from server.rpc.calls import Call, unary
from server.rpc.proto.predictor_pb2 import DESCRIPTOR, Prediction, PredictReply, PredictRequest
from server.shaping.policy import QualityClass

SERVICE: str = DESCRIPTOR.services_by_name["Predictor"].full_name
_Value = TypeVar("_Value")
_QUALITIES: dict[int, QualityClass] = {0: "standard", 1: "strict", 2: "standard", 3: "eco"}
_TRUNCATIONS: dict[int, Truncation | None] = {0: None, 1: "right", 2: "left"}


def predictor_methods(replies: Replies, arrivals: Arrivals) -> dict[str, Any]:
    """The service's handlers by method name."""

    async def predict(request: PredictRequest, call: Call) -> PredictReply:
        texts = texts_of(request, replies.engine.limits.max_texts_per_request)
        quality = _named(_QUALITIES, request.quality, "quality")
        truncate = _named(_TRUNCATIONS, request.truncate, "truncate")
        answered = await ask(replies, texts, quality, truncate, call.client)
        return render(answered, request.raw_scores)

    return {"Predict": unary(replies, arrivals, f"{SERVICE}/Predict", PredictRequest, predict)}


def texts_of(request: PredictRequest, max_texts: int) -> list[Text]:
    """What is to be classified. Raises EmptyInput, InputTooLarge or MalformedRequest."""
    count = len(request.texts) + len(request.pairs)
    if count > max_texts:
        raise InputTooLarge(f"texts, pairs: {count} in one request; the limit is {max_texts}")
    if request.texts and request.pairs:
        raise MalformedRequest("texts, pairs: both are given; send one of the two in a request")
    if request.pairs:
        return [Text(pair.first, pair.second) for pair in request.pairs]
    if not request.texts:
        raise EmptyInput("texts: none; send at least one text, or one pair in pairs")
    return [Text(text) for text in request.texts]


def render(answered: Answered, raw_scores: bool) -> PredictReply:
    """The reply's message."""
    manifest = answered.family.manifest
    labels = manifest.labels
    predictions = []
    for answer in answered.answers:
        scores = shown_scores(answer.logits, manifest, raw=raw_scores)
        order = best_first(scores)
        predictions.append(Prediction(labels=[labels[i] for i in order], scores=[scores[i] for i in order]))
    return PredictReply(predictions=predictions, **answered.told._asdict())


def _named(known: dict[int, _Value], number: int, field: str) -> _Value:
    """The meaning of an enum's number, which a newer client may have sent."""
    try:
        return known[number]
    except KeyError:
        raise MalformedRequest(f"{field}: {number} is not known to this server; send one of {list(known)}") from None
