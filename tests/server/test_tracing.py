"""Spans are made from the engine's own times, follow W3C Trace Context, and cost nothing where nobody wants them."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the otel extra")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from models.store import Store, Version
from server.api.asking import Client
from server.api.asking import ask as api_ask
from server.api.http import head_of
from server.api.replies import Replies
from server.config_problems import SettingsError
from server.engine.family import Family, load_family
from server.engine.tokenizer import Text
from server.rpc.proto.predictor_pb2 import PredictRequest
from server.tracing import Tracer, endpoint_of, make_provider, open_tracer
from tests.support.engines import gated, running, until
from tests.support.listening import BODY, LANES, listening
from tests.support.rpc import PREDICT, Meter, rpc_serving
from tests.support.tiny_family import CASCADE, publish_tiny_family

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (f"00-{TRACE_ID}-{PARENT_ID}-{flags}" for flags in ("01", "00"))


@pytest.fixture(autouse=True)
def _no_settings_of_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def family(tiny_version: Version) -> Family:
    return load_family(tiny_version)


@asynccontextmanager
async def traced(
    family: Family, standard: str = "full"
) -> AsyncIterator[tuple[httpx.AsyncClient, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    tracer = Tracer(make_provider(SimpleSpanProcessor(exporter)))
    async with (
        listening(family, tracer=tracer, standard=standard) as running,
        httpx.AsyncClient(base_url=running.url) as client,
    ):
        yield client, exporter
    tracer.close()


async def ask(client: httpx.AsyncClient, traceparent: str | None = None, body: bytes = BODY) -> httpx.Response:
    headers = {} if traceparent is None else {"traceparent": traceparent}
    return await client.post("/predict", content=body, headers=headers)


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    spans = {span.name: span for span in exporter.get_finished_spans()}
    exporter.clear()
    return spans


@pytest.mark.parametrize("path", LANES.values(), ids=LANES)
async def test_the_spans_of_a_request_hang_below_its_traceparent(family: Family, path: str) -> None:
    async with traced(family) as (client, exporter):
        reply = await client.post(path, content=BODY, headers={"traceparent": SAMPLED})
        spans = by_name(exporter)
    assert set(spans) == {"predict", "tokenize", "queue", "infer"}
    root = spans.pop("predict")
    assert root.context is not None
    assert (f"{root.context.trace_id:032x}", root.parent and f"{root.parent.span_id:016x}") == (TRACE_ID, PARENT_ID)
    for span in spans.values():
        assert span.parent == root.context
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time  # type: ignore[operator]
    ends = [spans[name].end_time for name in ("tokenize", "queue")]
    assert ends == [spans[name].start_time for name in ("queue", "infer")]
    assert reply.headers["traceresponse"] == f"00-{TRACE_ID}-{root.context.span_id:016x}-01"
    assert root.attributes is not None
    assert root.attributes["jouleserve.point"] == "full"


async def test_a_cascade_that_asks_its_second_variant_has_a_span_for_it(tmp_path: Path) -> None:
    cascaded = load_family(publish_tiny_family(Store(tmp_path), threshold=0.6))
    sure, mixed = b'{"inputs": "card card card card card card"}', b'{"inputs": [["card"], ["refund"], ["parcel my"]]}'
    async with traced(cascaded, standard=CASCADE) as (client, exporter):
        await ask(client, SAMPLED, sure)
        assert set(by_name(exporter)) == {"predict", "tokenize", "queue", "infer"}
        await ask(client, SAMPLED, mixed)
        spans = by_name(exporter)
    assert set(spans) == {"predict", "tokenize", "queue", "infer", "escalate"}
    root, infer, escalate = spans["predict"], spans["infer"], spans["escalate"]
    assert escalate.parent == root.context
    assert infer.end_time == escalate.start_time  # the three ran in one batch, both times
    assert escalate.start_time < escalate.end_time <= root.end_time  # type: ignore[operator]
    assert root.attributes is not None
    assert root.attributes["jouleserve.escalations"] == 3


async def test_an_unsampled_request_leaves_no_spans_and_stays_unsampled(family: Family) -> None:
    async with traced(family) as (client, exporter):
        reply = await ask(client, UNSAMPLED)
        assert by_name(exporter) == {}
    assert re.fullmatch(f"00-{TRACE_ID}-[0-9a-f]{{16}}-00", reply.headers["traceresponse"])


INVALID = {
    "none": None,
    "empty": "",
    "version ff": f"ff-{TRACE_ID}-{PARENT_ID}-01",
    "zero trace": f"00-{'0' * 32}-{PARENT_ID}-01",
    "zero parent": f"00-{TRACE_ID}-{'0' * 16}-01",
    "upper case": SAMPLED.upper(),
    "short": SAMPLED[:-1],
    "more behind version 00": f"{SAMPLED}-x",
    "words": "hello",
    "very long": "0" * 5000,
}


@pytest.mark.parametrize("traceparent", INVALID.values(), ids=INVALID)
async def test_an_invalid_traceparent_begins_a_new_trace(family: Family, traceparent: str | None) -> None:
    async with traced(family) as (client, exporter):
        reply = await ask(client, traceparent)
        root = by_name(exporter)["predict"]
    assert reply.status_code == 200
    assert root.parent is None
    assert TRACE_ID not in reply.headers["traceresponse"]


async def test_a_later_version_of_the_header_is_read_as_far_as_it_is_known(family: Family) -> None:
    async with traced(family) as (client, exporter):
        await ask(client, f"01-{TRACE_ID}-{PARENT_ID}-01-more")
        root = by_name(exporter)["predict"]
    assert root.parent is not None
    assert f"{root.parent.trace_id:032x}" == TRACE_ID


@pytest.mark.parametrize("path", LANES.values(), ids=LANES)
async def test_two_traceparents_are_none(family: Family, path: str) -> None:
    async with traced(family) as (client, exporter):
        headers = [("traceparent", SAMPLED), ("traceparent", SAMPLED)]
        await client.post(path, content=BODY, headers=headers)
        assert by_name(exporter)["predict"].parent is None


async def test_a_cached_answer_has_one_span(family: Family) -> None:
    async with traced(family) as (client, exporter):
        await ask(client)
        exporter.clear()
        await ask(client)
        spans = by_name(exporter)
    assert set(spans) == {"predict"}
    assert spans["predict"].attributes is not None
    assert spans["predict"].attributes["jouleserve.cache.hits"] == 1


async def test_a_failed_request_is_an_error_that_repeats_nothing_of_the_client(family: Family) -> None:
    async with traced(family) as (client, exporter):
        reply = await ask(client, SAMPLED, b'{"inputs": "my secret", "secret": 1}')
        span = by_name(exporter)["predict"]
    assert reply.status_code == 422
    assert TRACE_ID in reply.headers["traceresponse"]
    assert span.attributes is not None
    assert span.attributes["error.type"] == "MalformedRequest"
    assert span.status.status_code.name == "ERROR"
    assert "secret" not in span.to_json()


async def test_many_texts_make_no_more_spans_than_one(family: Family) -> None:
    async with traced(family) as (client, exporter):
        await ask(client, body=b'{"inputs": [["card"], ["refund"], ["card w1"], ["parcel"]]}')
        names = sorted(span.name for span in exporter.get_finished_spans())
    assert names == ["infer", "predict", "queue", "tokenize"]


async def test_without_a_tracer_nothing_is_said(family: Family) -> None:
    async with listening(family) as running, httpx.AsyncClient(base_url=running.url) as client:
        assert "traceresponse" not in (await ask(client, SAMPLED)).headers


@pytest.mark.parametrize("path", ["/predict", "/v2/models/tiny/infer"])
async def test_a_request_that_is_cancelled_ends_its_span(family: Family, path: str) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    exporter = InMemorySpanExporter()
    tracer = Tracer(make_provider(SimpleSpanProcessor(exporter)))
    async with running(held) as (engine, usage):
        replies = Replies(engine, Meter(), 1000, usage, None, tracer)
        if path == "/predict":
            asking = asyncio.ensure_future(replies.predict(BODY, head_of({"headers": []})))
        else:
            asking = asyncio.ensure_future(
                api_ask(replies, [Text("card")], "standard", None, Client(where={"url.path": path}))  # type: ignore[arg-type]
            )
        await until(lambda: bool(gates["full"].batches))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        gates["full"].gate.set()
    span = by_name(exporter)["predict"]
    assert span.attributes is not None
    assert (span.attributes["url.path"], span.attributes["error.type"]) == (path, "CancelledError")


async def test_a_span_says_which_path_was_asked_and_a_refusal_in_which_span_it_was(family: Family) -> None:
    path = "/v2/models/tiny/infer"
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["card"]}
    async with traced(family) as (client, exporter):
        answered = await client.post(path, json={"inputs": [tensor]}, headers={"traceparent": SAMPLED})
        root = by_name(exporter)["predict"]
        refused = await client.post(
            path, json={"inputs": [{**tensor, "data": [" "]}]}, headers={"traceparent": SAMPLED}
        )
        failed = by_name(exporter)["predict"]
    assert (answered.status_code, refused.status_code) == (200, 400)
    for reply, span in ((answered, root), (refused, failed)):
        assert span.context is not None
        assert span.attributes is not None
        assert span.attributes["url.path"] == path
        assert reply.headers["traceresponse"] == f"00-{TRACE_ID}-{span.context.span_id:016x}-01"


async def test_a_call_is_named_and_told_its_span_whether_it_is_answered_or_refused(family: Family) -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracer(make_provider(SimpleSpanProcessor(exporter)))
    async with rpc_serving(family, tracer=tracer) as rpc:
        for text, code in (("card", "OK"), (" ", "INVALID_ARGUMENT")):
            message = PredictRequest(texts=[text]).SerializeToString()
            call = rpc.channel.unary_unary(PREDICT)(message, metadata=(("traceparent", SAMPLED),), timeout=20)
            assert (await call.code()).name == code
            told = dict(await call.trailing_metadata())
            span = by_name(exporter)["predict"]
            assert span.context is not None
            assert told["traceresponse"] == f"00-{TRACE_ID}-{span.context.span_id:016x}-01"
            assert span.attributes is not None
            assert span.attributes["rpc.method"] == PREDICT[1:]
            assert "url.path" not in span.attributes
    assert told["error-type"] == "Empty"


async def test_a_call_whose_client_leaves_ends_its_span_and_is_no_failure_of_ours(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    exporter = InMemorySpanExporter()
    tracer = Tracer(make_provider(SimpleSpanProcessor(exporter)))
    with structlog.testing.capture_logs() as logged:
        async with rpc_serving(held, tracer=tracer) as rpc:
            call = rpc.channel.unary_unary(PREDICT)(PredictRequest(texts=["card"]).SerializeToString(), timeout=20)
            await until(lambda: bool(gates["full"].batches))
            call.cancel()
            await until(lambda: bool(exporter.get_finished_spans()))
            gates["full"].gate.set()
    span = by_name(exporter)["predict"]
    assert span.attributes is not None
    assert span.attributes["error.type"] == "CancelledError"
    assert logged == []


class Stuck(SimpleSpanProcessor):
    """A collector that does not answer."""

    def __init__(self) -> None:
        super().__init__(InMemorySpanExporter())
        self.released = threading.Event()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self.released.wait(60)


def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.tracing.CLOSE_TIMEOUT_S", 0.05)
    stuck = Stuck()
    closing = threading.Thread(target=Tracer(make_provider(stuck)).close, daemon=True)
    closing.start()
    closing.join(20)
    try:
        assert not closing.is_alive()
    finally:
        stuck.released.set()


class Collector(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP."""

    taken: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        self.taken.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


async def test_spans_arrive_at_a_collector_that_speaks_otlp_over_http(family: Family) -> None:
    taken: list[tuple[str, bytes]] = []
    handler = type("Handler", (Collector,), {"taken": taken})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as collector:
        threading.Thread(target=collector.serve_forever, args=(0.01,), daemon=True).start()
        tracer = open_tracer(f"http://127.0.0.1:{collector.server_address[1]}/")
        assert tracer is not None
        async with listening(family, tracer=tracer) as running, httpx.AsyncClient(base_url=running.url) as client:
            await ask(client, SAMPLED)
        await asyncio.to_thread(tracer.close)
        collector.shutdown()
    path, body = taken[0]
    assert path == "/v1/traces"
    resource = ExportTraceServiceRequest.FromString(body).resource_spans[0]
    spans = [span for scope in resource.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == ["infer", "predict", "queue", "tokenize"]
    assert {span.trace_id.hex() for span in spans} == {TRACE_ID}
    assert ("service.name", "jouleserve") in {(one.key, one.value.string_value) for one in resource.resource.attributes}


def test_the_setting_comes_before_opentelemetrys_own_variables() -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://all", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces"}
    assert endpoint_of("http://set", variables) == "http://set"
    assert endpoint_of(None, variables) == "http://traces"
    assert endpoint_of(None, {}) is None
    assert open_tracer(None) is None


def test_an_endpoint_without_the_extra_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    monkeypatch.setattr("server.tracing._installed", lambda module: False)
    with pytest.raises(SettingsError, match=r"pip install '\.\[otel\]'"):
        open_tracer("http://127.0.0.1:4318")


def test_where_nothing_is_traced_opentelemetry_is_not_imported() -> None:
    code = (
        "import sys, server.edge, server.replica, server.api.app, server.tracing\n"
        "assert server.tracing.open_tracer(None) is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.strip() == "[]", done.stderr


async def test_the_figures_point_to_recorded_traces_alone(family: Family) -> None:
    tracer = Tracer(make_provider(SimpleSpanProcessor(InMemorySpanExporter())))
    async with listening(family, tracer=tracer) as running, httpx.AsyncClient(base_url=running.url) as client:
        await ask(client, SAMPLED)
        await ask(client, SAMPLED.removesuffix("01") + "00")
    tracer.close()
    ((trace_id, variant, quality, total_ns, cpu_ns),) = running.usage.traces
    assert (trace_id, variant, quality) == (TRACE_ID, "full", "standard")
    assert total_ns > cpu_ns > 0
