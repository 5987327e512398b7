"""A real public client of the Open Inference Protocol, HTTP and gRPC, and our own call: all say what `/predict` says.

Against both ways of serving: one process, and Ray Serve with HAProxy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.utils import InferenceServerException

from loadtest.served import Served, free_port, serve
from models.store import Store
from server.api.errors import ERRORS
from server.rpc.proto.predictor_pb2 import TRUNCATION_RIGHT, PredictReply, PredictRequest
from server.rpc.proto.predictor_pb2_grpc import PredictorStub
from tests.support.tiny_family import WORDS, publish_tiny_family

pytestmark = pytest.mark.served

INPUTS = {"edge": 500, "serve": 100}  # the same code answers; what differs is how it is reached
Scored = list[tuple[str, float]]


class Clients:
    """One of each protocol, and one text's labels and scores by each."""

    def __init__(self, served: Served, grpc_port: int, inputs: int) -> None:
        self.inputs = inputs
        self.served = served
        self.http = httpx.Client(base_url=served.url, timeout=20)
        self.triton_http = triton_http.InferenceServerClient(served.url.removeprefix("http://"))
        self.triton_grpc = triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}")
        self.channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}")
        self.predictor = PredictorStub(self.channel)

    def close(self) -> None:
        """Close all connections."""
        for one in (self.http, self.triton_http, self.triton_grpc, self.channel):
            one.close()

    def by_predict(self, text: str, truncate: bool = False) -> Scored:
        """`POST /predict`."""
        reply = self.http.post("/predict", json={"inputs": text, "truncate": truncate}).raise_for_status()
        return [(one["label"], one["score"]) for one in reply.json()]

    def by_oip_http(self, text: str, truncate: bool = False) -> Scored:
        """tritonclient's HTTP client, binary tensors both ways as it does by itself."""
        return self._by_triton(self.triton_http, triton_http, text, truncate)

    def by_oip_grpc(self, text: str, truncate: bool = False) -> Scored:
        """tritonclient's gRPC client."""
        return self._by_triton(self.triton_grpc, triton_grpc, text, truncate)

    def by_own_grpc(self, text: str, truncate: bool = False) -> Scored:
        """The typed call."""
        side = TRUNCATION_RIGHT if truncate else None
        reply: PredictReply = self.predictor.Predict(PredictRequest(texts=[text], truncate=side), timeout=20)
        (one,) = reply.predictions
        return list(zip(one.labels, one.scores, strict=True))

    @staticmethod
    def _by_triton(client: Any, module: Any, text: str, truncate: bool) -> Scored:
        tensor = module.InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
        result = client.infer("tiny", [tensor], request_id="r", parameters={"truncate": truncate})
        labels, scores = result.as_numpy("labels")[0], result.as_numpy("scores")[0]
        return [(label.decode(), float(score)) for label, score in zip(labels, scores, strict=True)]


@pytest.fixture(scope="module", params=["edge", "serve"])
def clients(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """A server of either kind, its cache off, so that each protocol is computed for."""
    folder = tmp_path_factory.mktemp("p")
    store = Store(folder / "store")
    publish_tiny_family(store)
    port = free_port()
    settings = {
        "model.store": store.root,
        "model.family": "tiny",
        "cache.enabled": "false",
        "server.grpc_port": port,
        "energy.source": "estimated",
    }
    with serve(folder, settings, edge=request.param == "edge") as served:
        opened = Clients(served, port, INPUTS[request.param])
        yield opened
        opened.close()
    assert served.process.returncode == 0


def made_up_texts(count: int) -> list[str]:
    """Texts of known and unknown words, of several scripts and lengths."""
    chance = random.Random(7)
    words = [word for word in WORDS if word not in ("poison", "[PAD]", "[UNK]")]
    extra = ["Ωmega", "包裹", "naïve", "🙂", "o'clock", "(refund)", "\u00a0", "CARD", "\n"]
    return ["my " + " ".join(chance.choices(words + extra, k=chance.randint(1, 90))) for _ in range(count)]


def test_every_protocol_gives_the_same_labels_and_scores(clients: Clients) -> None:
    texts = made_up_texts(clients.inputs)
    for text in texts:
        expected = clients.by_predict(text, truncate=True)
        for ask in (clients.by_oip_http, clients.by_oip_grpc, clients.by_own_grpc):
            got = ask(text, truncate=True)
            assert [label for label, _ in got] == [label for label, _ in expected], text
            np.testing.assert_allclose([s for _, s in got], [s for _, s in expected], rtol=0, atol=1e-6)


BAD = {"nothing": "", "blank": "  ", "too long": "my " * 100, "too many characters": "a" * 20_001, "poison": "poison"}


@pytest.mark.parametrize("case", BAD)
def test_every_protocol_refuses_a_bad_input_for_the_same_reason(clients: Clients, case: str) -> None:
    text = BAD[case]
    with pytest.raises(httpx.HTTPStatusError) as predict:
        clients.by_predict(text)
    reply = predict.value.response
    rows = {row for row in ERRORS.values() if row[:2] == (reply.status_code, reply.json()["error_type"])}
    with pytest.raises(InferenceServerException) as oip_http:
        clients.by_oip_http(text)
    assert oip_http.value.status() == str(reply.status_code)
    assert oip_http.value.message() == reply.json()["error"]
    with pytest.raises(InferenceServerException) as oip_grpc:
        clients.by_oip_grpc(text)
    with pytest.raises(grpc.RpcError) as own:
        clients.by_own_grpc(text)
    code, trailing = own.value.code(), dict(own.value.trailing_metadata())
    assert (reply.status_code, trailing["error-type"], code.name) in rows
    assert oip_grpc.value.status() == f"StatusCode.{code.name}"
    assert oip_grpc.value.message() == own.value.details() == reply.json()["error"]


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_the_public_client_finds_its_way_around(clients: Clients, kind: str) -> None:
    client = clients.triton_http if kind == "http" else clients.triton_grpc
    as_json: dict[str, Any] = {} if kind == "http" else {"as_json": True}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    server, model = client.get_server_metadata(**as_json), client.get_model_metadata("tiny", **as_json)
    assert server["name"] == "jouleserve"
    assert client.is_model_ready("tiny", model["versions"][0])
    assert [one["name"] for one in model["outputs"]] == ["labels", "scores"]
    with pytest.raises(InferenceServerException) as unknown:
        client.get_model_metadata("other")
    assert unknown.value.status() in ("404", "StatusCode.NOT_FOUND")


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_the_public_client_gets_classes_parameters_and_its_id(clients: Clients, kind: str) -> None:
    module = triton_http if kind == "http" else triton_grpc
    client = clients.triton_http if kind == "http" else clients.triton_grpc
    tensor = module.InferInput("text", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([b"card", b"refund"], dtype=np.object_))
    wanted = module.InferRequestedOutput("scores", class_count=2)
    asked = {"quality": "eco", "raw_scores": True}
    result = client.infer("tiny", [tensor], outputs=[wanted], request_id="mine", parameters=asked)
    assert result.as_numpy("scores").tolist() == [[b"0.25:0:card", b"0:1:refund"], [b"0.25:1:refund", b"0:0:card"]]
    reply = result.get_response(**({} if kind == "http" else {"as_json": True}))
    said = reply["parameters"]
    if kind == "grpc":  # each value stands under the name of its type there
        said = {name: next(iter(value.values())) for name, value in said.items()}
    assert reply["id"] == "mine"
    assert (said["point"], said["joules_source"]) == ("nano", "estimated")
    assert said["joules"] > 0


def test_health_and_reflection_answer_their_own_clients(clients: Clients) -> None:
    health = health_pb2_grpc.HealthStub(clients.channel)
    for service in ("", "inference.GRPCInferenceService", "jouleserve.v1.Predictor"):
        status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status
        assert status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(clients.channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    (reply,) = stub.ServerReflectionInfo(iter([question]), timeout=20)
    assert {"inference.GRPCInferenceService", "jouleserve.v1.Predictor"} <= {
        one.name for one in reply.list_services_response.service
    }
