"""One gRPC call: raw bytes in, raw bytes out, and every error told by the table in `server.api.errors`.

Messages are parsed here and not by gRPC, which tells a client of a malformed one that the server is broken (UNKNOWN).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from server.api.app import Replies
from server.api.asking import Client
from server.api.errors import MalformedRequest, error_row, retry_after_s
from server.engine.errors import ClientGone, EngineError

log = structlog.get_logger(__name__)

INTERNAL_ERROR = "internal error; the server's log has it"


class Call:
    """A call beside its message."""

    __slots__ = ("_context", "client")

    def __init__(self, context: Any) -> None:
        self._context = context
        self.client = _client_of(context)

    def tell_trace(self, traceresponse: bytes | None) -> None:
        """Say in which span the request was, where requests are traced."""
        if traceresponse is not None:
            self._context.set_trailing_metadata((("traceresponse", traceresponse.decode()),))


Method = Callable[[Any, Call], Awaitable[Message]]


def unary(replies: Replies, request_type: type[Message], method: Method) -> Any:
    """A method handler for `grpc.method_handlers_generic_handler`.

    When the client leaves or its deadline passes, gRPC cancels the task that runs this, and the engine then computes
    nothing for it.
    """
    parse = request_type.FromString

    async def answer(raw: bytes, context: Any) -> bytes:
        try:
            reply: bytes = (await method(_parse(parse, raw), Call(context))).SerializeToString()
            return reply
        except EngineError as error:
            replies.note(error)
            await _refuse(context, error)
        except Exception as error:
            if isinstance(error, grpc.aio.AbortError):
                raise
            log.exception("a call failed")
            await context.abort(grpc.StatusCode.INTERNAL, INTERNAL_ERROR)
        raise AssertionError("abort returns")

    return grpc.unary_unary_rpc_method_handler(answer)


def _parse(parse: Callable[[bytes], Message], raw: bytes) -> Message:
    try:
        return parse(raw)
    except (DecodeError, UnicodeDecodeError):
        raise MalformedRequest("message: not of the documented type, or a text in it is not UTF-8") from None


def _client_of(context: Any) -> Client:
    authorization = traceparent = None
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and authorization is None:
            authorization = value.encode()
        elif key == "traceparent":
            traceparent = value.encode() if traceparent is None else b""
    return Client(authorization, traceparent, context.time_remaining())


async def _refuse(context: Any, error: EngineError) -> None:
    """End a call with the error's status; `error-type` tells apart what shares a status, as HTTP's body does."""
    if isinstance(error, ClientGone):
        await context.abort(grpc.StatusCode.CANCELLED, str(error))
    row = error_row(error)
    trailing = [("error-type", row.error_type)]
    wait_s = retry_after_s(error)
    if wait_s is not None:
        # The second is what gRPC's own retries obey, milliseconds.
        trailing += [("retry-after", str(wait_s)), ("grpc-retry-pushback-ms", str(wait_s * 1000))]
    await context.abort(grpc.StatusCode[row.grpc_code], str(error), tuple(trailing))
