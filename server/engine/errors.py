"""What can go wrong with a request, whatever protocol it came by. `server.api.errors` maps each to a protocol."""

from __future__ import annotations


class EngineError(Exception):
    """A request failed; the message names the field and the remedy."""

    counted = False
    """Whether the engine has recorded the texts that failed by it; what it has not, the protocols' adapters record."""


class EmptyInput(EngineError):
    """There is nothing to classify."""


class InvalidInput(EngineError):
    """The request is well-formed but asks for what the family cannot do."""


class InputTooLarge(EngineError):
    """A body, a batch or a text is over its limit."""


class Overloaded(EngineError):
    """The queue is full; `retry_after_s` says when to come back."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(EngineError):
    """The engine is loading or draining."""


class DeadlineExceeded(EngineError):
    """The answer did not come within the request's time limit."""

    counted = True


class BackendFailure(EngineError):
    """The runtime failed on this very text (others of its batch are answered)."""

    counted = True


class ClientGone(EngineError):
    """Nobody waits for the answer any more."""

    counted = True
