"""Asking the engine on behalf of a client, for the protocols whose requests are parsed already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from server.api.replies import Replies
from server.api.told import Told
from server.engine.engine import Answer, never_gone
from server.engine.errors import EngineError
from server.engine.family import Family
from server.engine.tokenizer import Text, Truncation
from server.shaping.policy import QualityClass


def tell_nobody(traceresponse: bytes) -> None:
    """For a client that cannot be told in which span its request was."""


class Client(NamedTuple):
    """Who asks. `timeout_s` is what is left of the client's own deadline, None without one; `session` keeps its
    requests on one side of a divided dial; `where` says of a span what was asked, and `tell_trace` is given the value
    of `traceresponse` where requests are traced."""

    authorization: bytes | None = None
    traceparent: bytes | None = None
    timeout_s: float | None = None
    is_gone: Callable[[], bool] = never_gone
    where: Mapping[str, str] = {}
    tell_trace: Callable[[bytes], None] = tell_nobody
    session: bytes | None = None


class Answered(NamedTuple):
    """Answers in the order of the texts, the version of the family that gave them, and what to say of them."""

    answers: list[Answer]
    family: Family
    told: Told


async def ask(
    replies: Replies, texts: Sequence[Text], quality: QualityClass, truncate: Truncation | None, client: Client
) -> Answered:
    """Admit a request and have every text answered. Raises an EngineError."""
    trace = None if replies.tracer is None else replies.tracer.begin(client.traceparent, client.where)
    engine = replies.engine
    family = engine.family
    try:
        if replies.guard is not None:
            replies.guard.admit(client.authorization, len(texts))
        answers = await engine.predict(
            texts,
            quality=quality,
            truncate=truncate,
            is_gone=client.is_gone,
            timeout_s=client.timeout_s,
            session=client.session or None,
        )
    except BaseException as error:  # a span that is not ended is never sent
        if replies.guard is not None and isinstance(error, EngineError):
            replies.guard.forgive(error, client.authorization, len(texts))
        if trace is not None:
            client.tell_trace(trace.failed(error)[1])
        raise
    if trace is not None:
        replies.trace_answered(trace, answers, quality)
        client.tell_trace(trace.answered(answers)[1])
    return Answered(answers, family, replies.tell(answers, family))
