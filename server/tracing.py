"""OpenTelemetry spans of requests, made from the times that the engine measures anyway.

A request is a span `predict`, child of the request's W3C `traceparent` if that is valid (otherwise a new trace begins,
as the specification has it), with a child each for `tokenize`, `queue` and `infer`, and one for `escalate`, waiting
included, where a cascade asked its second variant. The reply says which span it was in `traceresponse`, in the form of
`traceparent`: no request is sent on from here, so there is nobody else to tell. Whether a trace is
recorded is decided by the flag of `traceparent`, or by the standard variable OTEL_TRACES_SAMPLER.

OpenTelemetry is imported when a tracer is opened, and not before.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from server.config_problems import SettingsError
from server.engine.engine import Answer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
CLOSE_TIMEOUT_S = 3.0
PREDICT: Mapping[str, str] = {"url.path": "/predict"}


class Tracer:
    """Begins a trace per request. `close` sends what has not been sent."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._api = trace
        self._tracer = provider.get_tracer("jouleserve", version("jouleserve"))
        self._parent_of = TraceContextTextMapPropagator().extract

    def begin(self, traceparent: bytes | None, where: Mapping[str, str] = PREDICT) -> RequestTrace:
        """The span of a request that begins now; `where` are attributes that say what was asked."""
        carrier = {} if traceparent is None else {"traceparent": traceparent.decode("latin-1").strip()}
        now_ns = time.time_ns()
        span = self._tracer.start_span(
            "predict",
            self._parent_of(carrier, self._api.set_span_in_context(self._api.INVALID_SPAN)),
            kind=self._api.SpanKind.SERVER,
            attributes=where,
            start_time=now_ns,
        )
        return RequestTrace(self, span, now_ns, now_ns - time.perf_counter_ns())

    def child(self, parent: Span, name: str, start_ns: int, end_ns: int, texts: int) -> None:
        """A finished span below `parent`; times since the epoch."""
        below = self._api.set_span_in_context(parent)
        span = self._tracer.start_span(name, below, start_time=start_ns, attributes={"jouleserve.texts": texts})
        span.end(end_ns)

    def close(self) -> None:
        """Send what is waiting, within CLOSE_TIMEOUT_S: a collector that does not answer must not hold up the end.

        OpenTelemetry's own time limits do not hold (its exporter tries again for ten seconds), so a thread that the
        process does not wait for does the sending.
        """
        sending = threading.Thread(target=self._send_rest, name="send spans", daemon=True)
        sending.start()
        sending.join(CLOSE_TIMEOUT_S)

    def _send_rest(self) -> None:
        self._provider.force_flush()
        self._provider.shutdown()


class RequestTrace:
    """The spans of one request. `clock_offset_ns` leads from `time.perf_counter_ns` to the time since the epoch."""

    __slots__ = ("_offset_ns", "_span", "_start_ns", "_tracer")

    def __init__(self, tracer: Tracer, span: Span, start_ns: int, clock_offset_ns: int) -> None:
        self._tracer, self._span, self._start_ns, self._offset_ns = tracer, span, start_ns, clock_offset_ns

    def answered(self, answers: Sequence[Answer]) -> tuple[bytes, bytes]:
        """End the spans; the header that tells the client."""
        span = self._span
        if span.is_recording():
            self._describe(answers)
            computed = [answer for answer in answers if answer.ended_ns]
            if computed:
                self._phases(computed)
            span.end()
        return self._header()

    @property
    def recorded_id(self) -> str | None:
        """The trace's id where it was recorded, so that it can be looked up; None otherwise."""
        context = self._span.get_span_context()
        return f"{context.trace_id:032x}" if context.trace_flags.sampled else None

    @property
    def elapsed_ns(self) -> int:
        """Time since the request began."""
        return time.perf_counter_ns() + self._offset_ns - self._start_ns

    def failed(self, error: BaseException) -> tuple[bytes, bytes]:
        """End the span of a request without an answer; the header that tells the client."""
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("error.type", type(error).__name__)
        # Not the error's words: they may repeat what the client sent.
        self._span.set_status(StatusCode.ERROR)
        self._span.end()
        return self._header()

    def _describe(self, answers: Sequence[Answer]) -> None:
        first = answers[0]
        self._span.set_attributes(
            {
                "jouleserve.texts": len(answers),
                "jouleserve.point": first.point,
                "jouleserve.variant": first.variant,
                "jouleserve.reason": first.reason,
                "jouleserve.cache.hits": sum(answer.cache == "hit" for answer in answers),
                "jouleserve.escalations": sum(answer.escalate_ns > 0 for answer in answers),
                "jouleserve.cpu_ns": sum(answer.cpu_ns for answer in answers),
            }
        )

    def _phases(self, answers: Sequence[Answer]) -> None:
        """One span a phase, from the first text that was in it to the last: their number does not grow with the texts.

        An equal text that was in flight already had begun before this request; that part is left out.
        """
        escalated = [answer for answer in answers if answer.escalate_ns]
        ends = [answer.ended_ns - answer.escalate_ns + self._offset_ns for answer in answers]
        infers = [end - answer.infer_ns for end, answer in zip(ends, answers, strict=True)]
        queues = [begun - answer.queue_ns for begun, answer in zip(infers, answers, strict=True)]
        tokenizes = [queued - answer.tokenize_ns for queued, answer in zip(queues, answers, strict=True)]
        phases = (("tokenize", tokenizes, queues), ("queue", queues, infers), ("infer", infers, ends))
        for name, starts, stops in phases:
            start = max(self._start_ns, min(starts))
            self._tracer.child(self._span, name, start, max(start, *stops), len(answers))
        if escalated:
            stops = [answer.ended_ns + self._offset_ns for answer in escalated]
            starts = [stop - answer.escalate_ns for stop, answer in zip(stops, escalated, strict=True)]
            start = max(self._start_ns, min(starts))
            self._tracer.child(self._span, "escalate", start, max(start, *stops), len(escalated))

    def _header(self) -> tuple[bytes, bytes]:
        context = self._span.get_span_context()
        value = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        return b"traceresponse", value.encode()


def endpoint_of(setting: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Where spans are sent to: the setting, or else OpenTelemetry's own variables; None for nowhere."""
    named = [value for name in ENDPOINT_VARIABLES if (value := environment.get(name))]
    return setting or (named[0] if named else None)


def open_tracer(setting: str | None) -> Tracer | None:
    """A tracer that sends spans by OTLP over HTTP, or None if no endpoint is configured.

    Raises SettingsError as `check_tracing` does.
    """
    if endpoint_of(setting) is None:
        return None
    check_tracing(setting)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Without an endpoint of its own, the exporter reads OpenTelemetry's variables.
    exporter = OTLPSpanExporter(endpoint=None if setting is None else f"{setting.rstrip('/')}/v1/traces")
    return Tracer(make_provider(BatchSpanProcessor(exporter)))


def check_tracing(setting: str | None) -> None:
    """Raise SettingsError if an endpoint is configured and OpenTelemetry is not installed."""
    if endpoint_of(setting) is not None and not _installed("opentelemetry.exporter.otlp.proto.http"):
        raise SettingsError(
            ["tracing.otlp_endpoint: OpenTelemetry is not installed; pip install '.[otel]', or unset the endpoint"]
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def make_provider(processor: Any) -> TracerProvider:
    """A provider of our own (the process's global one is left alone) that hands spans to `processor`."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider

    name = os.environ.get("OTEL_SERVICE_NAME") or "jouleserve"
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider
