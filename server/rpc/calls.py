"""One gRPC call: raw bytes in, raw bytes out, and every error told by the table in `server.api.errors`.

Messages are parsed here and not by gRPC, which tells a client of a malformed one that the server is broken (UNKNOWN).
They are read here, too: gRPC would wait without end for the message of a call, and before anybody asked for its key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from server.api.asking import Client
from server.api.errors import error_row, retry_after_s
from server.api.replies import Replies
from server.engine.errors import ClientGone, EngineError
from server.rpc.arrival import Arrivals, parse

log = structlog.get_logger(__name__)

INTERNAL_ERROR = "internal error; the server's log has it"


class Call:
    """A call beside its message."""

    __slots__ = ("client", "context", "trailing")

    def __init__(self, context: Any, where: Mapping[str, str]) -> None:
        self.context = context
        self.trailing: list[tuple[str, str]] = []
        self.client = _client_of(context, where, self._tell_trace)

    def _tell_trace(self, traceresponse: bytes) -> None:
        """Say in which span the request was, whether it is answered or refused."""
        self.trailing.append(("traceresponse", traceresponse.decode()))
        self.context.set_trailing_metadata(tuple(self.trailing))


Method = Callable[[Any, Call], Awaitable[Message]]


def unary(
    replies: Replies,
    arrivals: Arrivals,
    path: str,
    request_type: type[Message],
    method: Method,
    *,
    needs_key: bool = True,
) -> grpc.RpcMethodHandler[Any, Any]:
    """A method handler for `add_registered_method_handlers`; `path` is the method's, as SERVICE/METHOD.

    A key is asked for before the message is read, except where `needs_key` is false. When the client leaves or its
    deadline passes, gRPC cancels the task that runs this, and the engine then computes nothing for it.
    """
    guard = replies.guard if needs_key else None
    where = {"rpc.system.name": "grpc", "rpc.method": path}

    async def answer(_requests: Any, context: Any) -> bytes:
        call = Call(context, where)
        try:
            if guard is not None:
                guard.admit(call.client.authorization, 0)
            message = parse(request_type, await arrivals.read(context))
            reply: bytes = (await method(message, call)).SerializeToString()
            return reply
        except EngineError as error:
            replies.note(error)
            await _refuse(call, error)
        except Exception as error:
            if isinstance(error, grpc.aio.AbortError):
                raise
            log.exception("a call failed")
            await context.abort(grpc.StatusCode.INTERNAL, INTERNAL_ERROR)
        raise AssertionError("abort returns")

    # A stream of one message to this side, unary on the wire: so the message is asked for here.
    return grpc.stream_unary_rpc_method_handler(answer)


def _client_of(context: Any, where: Mapping[str, str], tell_trace: Callable[[bytes], None]) -> Client:
    authorization = traceparent = session = None
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and authorization is None:
            authorization = value.encode()
        elif key == "x-session" and session is None:
            session = value.encode()
        elif key == "traceparent":
            traceparent = value.encode() if traceparent is None else b""
    return Client(
        authorization,
        traceparent,
        context.time_remaining(),
        where=where,
        tell_trace=tell_trace,
        session=session,
    )


async def _refuse(call: Call, error: EngineError) -> None:
    """End a call with the error's status; `error-type` tells apart what shares a status, as HTTP's body does."""
    if isinstance(error, ClientGone):
        await call.context.abort(grpc.StatusCode.CANCELLED, str(error))
    row = error_row(error)
    trailing = [*call.trailing, ("error-type", row.error_type)]
    wait_s = retry_after_s(error)
    if wait_s is not None:
        # The second is what gRPC's own retries obey, milliseconds.
        trailing += [("retry-after", str(wait_s)), ("grpc-retry-pushback-ms", str(wait_s * 1000))]
    await call.context.abort(grpc.StatusCode[row.grpc_code], str(error), tuple(trailing))
