"""A `/predict` body in, a reply out; knows no protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from server.api.errors import error_body, error_row, retry_after_s
from server.api.http import Head, Headers, Reply
from server.api.intake import Intake
from server.api.predict import answer_headers, parse_predict, parse_quality, render_predictions
from server.api.told import Told, tell
from server.engine.engine import Answer, Engine, UsageSink, never_gone
from server.engine.errors import ClientGone, EngineError
from server.engine.family import Family
from server.guard import Guard, Unauthenticated
from server.jobs.port import JobsPort
from server.shaping.policy import QualityClass
from server.tracing import RequestTrace, Tracer


class Joules(Protocol):
    """What turns CPU time into provisional joules; a replica's `NodeLink`."""

    joules_per_cpu_second: float | None
    loaded_ratio: float | None
    sources: tuple[str, ...]


class JobsIntake(NamedTuple):
    """Who keeps the jobs, and the largest body and most texts of one."""

    port: JobsPort
    max_body_bytes: int
    max_texts: int


class Replies:
    """Turns a `/predict` body into a reply; knows no protocol."""

    def __init__(
        self,
        engine: Engine,
        joules: Joules,
        max_body_bytes: int,
        usage: UsageSink,
        guard: Guard | None = None,
        tracer: Tracer | None = None,
        jobs: JobsIntake | None = None,
    ) -> None:
        """`usage` is told of what never reaches the engine; without `guard`, `tracer` and `jobs` there is nothing of
        theirs."""
        self.engine = engine
        self.max_body_bytes = max_body_bytes
        self.jobs = jobs
        self.intake = Intake(max_body_bytes)
        self.guard = guard
        self.tracer = tracer
        self._joules = joules
        self._usage = usage

    async def predict(self, body: bytes, head: Head, is_gone: Callable[[], bool] = never_gone) -> Reply | None:
        """The reply to a body, errors included; None if the client has left."""
        trace = None if self.tracer is None else self.tracer.begin(head.traceparent)
        engine = self.engine
        family = engine.family
        quality: QualityClass = "standard"
        taken = 0
        try:
            request = parse_predict(body, engine.limits.max_texts_per_request)
            quality = parse_quality(head.quality)
            if self.guard is not None:
                self.guard.admit(head.authorization, len(request.texts))
                taken = len(request.texts)
            answers = await engine.predict(
                request.texts,
                quality=quality,
                truncate=request.truncate,
                is_gone=is_gone,
                session=head.session or None,
            )
        except EngineError as error:
            if taken and self.guard is not None:
                self.guard.forgive(error, head.authorization, taken)
            return self._failed(error, quality, trace)
        except BaseException as error:  # a span that is not ended is never sent
            if trace is not None:
                trace.failed(error)
            raise
        headers = answer_headers(self.tell(answers, family))
        if trace is not None:
            self.trace_answered(trace, answers, quality)
            headers.append(trace.answered(answers))
        return Reply(200, render_predictions(request, answers, family.manifest), headers)

    def trace_answered(self, trace: RequestTrace, answers: list[Answer], quality: QualityClass) -> None:
        """Let the metrics point to a recorded trace."""
        if (trace_id := trace.recorded_id) is not None:
            cpu_ns = sum(answer.cpu_ns for answer in answers)
            self._usage.traced(trace_id, answers[0].variant, quality, trace.elapsed_ns, cpu_ns)

    def tell(self, answers: list[Answer], family: Family) -> Told:
        """What to say of the answers of one request."""
        joules = self._joules
        return tell(answers, joules.joules_per_cpu_second, joules.sources, family.version, joules.loaded_ratio)

    def refuse(self, error: EngineError, quality: QualityClass = "standard") -> Reply:
        """The reply to a request that ends with `error`; counted, unless the engine has done so."""
        self.note(error, quality)
        return error_reply(error)

    def note(self, error: EngineError, quality: QualityClass = "standard") -> None:
        """Count a request that was refused before the engine looked at its texts."""
        if not error.counted:
            self._usage.request("", "", quality, "refused", 0)

    def _failed(self, error: EngineError, quality: QualityClass, trace: RequestTrace | None) -> Reply | None:
        told = None if trace is None else trace.failed(error)
        if isinstance(error, ClientGone):
            return None
        reply = self.refuse(error, quality)
        if told is not None:
            reply.headers.append(told)
        return reply


def error_reply(error: EngineError) -> Reply:
    """An error in text-embeddings-inference's body shape."""
    status, error_type, _ = error_row(error)
    wait_s = retry_after_s(error)
    headers: Headers = [] if wait_s is None else [(b"retry-after", b"%d" % wait_s)]
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    return Reply(status, error_body(str(error), error_type), headers)
