"""A request of the fast lane while it comes in, and when it has become too much."""

from __future__ import annotations

from server.api.errors import BodyTooLarge, MalformedRequest
from server.api.http import CHUNK_COST, MAX_HEAD_BYTES
from server.api.intake import Intake
from server.engine.errors import EngineError, Overloaded


class Incoming:
    """What was read of a request so far; a `server.api.http.Head`. The defaults belong to the class: most requests set
    few of the fields."""

    url = b""
    size = 0
    quality: bytes | None = None
    authorization: bytes | None = None
    traceparent: bytes | None = None
    session: bytes | None = None
    complete_head = False
    expects_continue = False
    too_large = False
    refusal: EngineError | None = None
    """What to answer in its place. Nothing of its body is kept then."""
    keep_alive = True
    held_bytes = 0
    # Counted only if the request comes in several pieces:
    _wire_bytes = 0
    _bare_bytes = 0  # since the last piece that had any of the body in it
    _counted_size = 0

    def __init__(self, begun: float) -> None:
        """`begun` is when its first byte came, by the loop's clock."""
        self.begun = begun
        self.body: list[bytes] = []

    def endless(self, more_bytes: int, max_body_bytes: int) -> EngineError | None:
        """Why not to read on, after another piece without the request's end: headers, trailers or what is around chunks
        go on for too long."""
        self._wire_bytes += more_bytes
        self._bare_bytes = self._bare_bytes + more_bytes if self.size == self._counted_size else 0
        self._counted_size = self.size
        if not self.complete_head and self._wire_bytes > MAX_HEAD_BYTES:
            return MalformedRequest(f"headers: more than {MAX_HEAD_BYTES} bytes; send fewer or shorter ones")
        if self.complete_head and self._bare_bytes > MAX_HEAD_BYTES:
            return BodyTooLarge(f"body: more than {MAX_HEAD_BYTES} bytes in a row that are none of it; send none")
        if self._wire_bytes > MAX_HEAD_BYTES + CHUNK_COST * max_body_bytes:
            return BodyTooLarge("body: far more bytes around it than in it; send it in larger chunks")
        return None

    def hold(self, more_bytes: int, intake: Intake) -> None:
        """Count that so much more is kept; where all requests keep too much, keep nothing of this one."""
        if self.refusal is not None:
            return
        if intake.take(more_bytes):
            self.held_bytes += more_bytes
            return
        self.give_back(intake)
        self.body.clear()
        self.refusal = Overloaded("body: the server is reading too many others; send it again", 1.0)

    def give_back(self, intake: Intake) -> None:
        """It is answered, or will never be."""
        intake.give(self.held_bytes)
        self.held_bytes = 0
