"""locust's users: each takes the next request that falls due, sends it and notes what came back."""

from __future__ import annotations

import time
from typing import Any

import orjson
from locust import FastHttpUser, LoadTestShape, User, constant, task

from loadtest.load.plan import Due, Plan

TIMEOUT_S = 30.0


class PlannedArrivals(LoadTestShape):  # type: ignore[misc]
    """All clients from the beginning until the plan is over: the arrivals are the plan's."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan

    def tick(self) -> tuple[int, float] | None:
        """Asked once a second."""
        return None if self._plan.over else (self._plan.clients, self._plan.clients)


class HttpAsker(FastHttpUser):  # type: ignore[misc]
    """Asks `/predict`."""

    plan: Plan
    wait_time = constant(0)
    network_timeout = connection_timeout = TIMEOUT_S

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        """One request."""
        due = self.plan.next()
        question = due.question
        body = orjson.dumps({"inputs": question.text, "truncate": True})
        headers = {"content-type": "application/json", "x-quality": question.quality}
        sent_s = time.perf_counter()
        with self.client.post(
            "/predict", data=body, headers=headers, name=question.quality, catch_response=True
        ) as reply:
            status, answer = int(reply.status_code or 0), {}
            if status == 200:
                try:
                    answer = _http_answer(due, reply)
                except (ValueError, LookupError, TypeError):
                    status = 0
            if status == 200:
                reply.success()
            else:
                reply.failure(f"status {status}" if status else "no reply that can be read")
        self.plan.take(due, sent_s, status, **answer)


def _http_answer(due: Due, reply: Any) -> dict[str, Any]:
    label = orjson.loads(reply.content)[0]["label"]
    said = reply.headers
    return {
        "point": said.get("x-jouleserve-point", ""),
        "variant": said.get("x-jouleserve-variant", ""),
        "cache": said.get("x-jouleserve-cache", ""),
        "correct": _correct(due, label),
    }


class GrpcAsker(User):  # type: ignore[misc]
    """Asks `jouleserve.v1.Predictor/Predict` over one channel that all users of the process share."""

    plan: Plan
    channel: Any
    wait_time = constant(0)

    def on_start(self) -> None:
        """Called by locust."""
        from server.rpc.proto.predictor_pb2_grpc import PredictorStub

        self._stub: Any = PredictorStub(self.channel)  # type: ignore[no-untyped-call]

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        """One call."""
        import grpc

        from server.rpc.proto.predictor_pb2 import TRUNCATION_RIGHT, PredictRequest, Quality

        due = self.plan.next()
        quality = Quality.Value(f"QUALITY_{due.question.quality.upper()}")
        request = PredictRequest(texts=[due.question.text], quality=quality, truncate=TRUNCATION_RIGHT)
        sent_s = time.perf_counter()
        failure, answer, size = None, {}, 0
        try:
            reply = self._stub.Predict(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            failure = error
            status = HTTP_STATUS.get(error.code().name, 0)
        else:
            status, size = 200, reply.ByteSize()
            answer = {
                "point": reply.point,
                "variant": reply.variant,
                "cache": reply.cache,
                "correct": _correct(due, reply.predictions[0].labels[0]),
            }
        self.environment.events.request.fire(
            request_type="grpc",
            name=due.question.quality,
            response_time=(time.perf_counter() - sent_s) * 1000,
            response_length=size,
            exception=failure,
            context={},
        )
        self.plan.take(due, sent_s, status, **answer)


HTTP_STATUS = {
    "INVALID_ARGUMENT": 422,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "DEADLINE_EXCEEDED": 504,
    "UNAVAILABLE": 503,
    "INTERNAL": 500,
}
"""What the codes that the server gives are over HTTP; others count as no reply."""


def open_channel(target: str) -> Any:
    """A channel that works under gevent. Raises ImportError without `[grpc]`."""
    import grpc
    from grpc.experimental import gevent as grpc_gevent

    grpc_gevent.init_gevent()
    return grpc.insecure_channel(target)


def _correct(due: Due, label: str) -> bool | None:
    return None if due.question.label is None else label == due.question.label
