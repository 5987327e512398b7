"""Two machines under one Ray, as KubeRay would start them: one count, one dial, and one that may die."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest

from loadtest.chaos_cases import Place, wait_for
from loadtest.client import Question
from loadtest.demo_tables import read_metrics
from loadtest.http import HTTP
from loadtest.served import free_port
from loadtest.standing import load, statuses
from models.store import Store
from server.rpc.proto.predictor_pb2 import PredictRequest
from server.rpc.proto.predictor_pb2_grpc import PredictorStub
from server.shaping.controller import JITTER
from tests.support.live_feed import Feed
from tests.support.machines import Machines, machines
from tests.support.tiny_family import publish_tiny_family

pytestmark = pytest.mark.served

CLIENTS = 8
QUESTIONS = [Question(f"refund w{n % 50} w{n // 50 % 50}") for n in range(1000)]
TOLD_WITHIN_S = 20
POLL_S = 1.0
GRPC_PORT = free_port()
MOST_CONNECTIONS = 40
"""That one of two replicas gets none of them is as likely as 40 heads in a row."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("models") / "store")
    publish_tiny_family(store)
    return store


@pytest.fixture(scope="module")
def feed() -> Iterator[Feed]:
    with Feed() as feed:
        yield feed


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, store: Store, feed: Feed) -> Iterator[Machines]:
    """A head and a second machine, a replica on each."""
    with machines(tmp_path_factory.mktemp("c"), cpus=1) as cluster:
        cluster.add(cpus=1)
        port = int(cluster.url.rsplit(":", 1)[1])
        settings = {
            # Replicas are reached by the addresses of their machines.
            "server": {"host": "0.0.0.0", "port": port, "replicas": 2, "drain_timeout_s": 5, "grpc_port": GRPC_PORT},
            "model": {"store": str(store.root), "family": "tiny"},
            "cache": {"enabled": False},
            "batching": {"workers": 1},
            "energy": {"source": "estimated"},
            "grid": {"provider": "uk", "base_url": feed.url, "max_attempts": 1},
            "shaping": {"policy": "off", "poll_period_s": POLL_S},
        }
        cluster.deploy(
            {
                "proxy_location": "HeadOnly",  # two machines of one network cannot both have the port
                "http_options": {"host": "0.0.0.0", "port": port},
                "applications": [
                    {
                        "name": "jouleserve",
                        "route_prefix": "/",
                        "import_path": "server.cluster:app",
                        "args": {"settings": settings},
                    }
                ],
            }
        )
        wait_for(lambda: all(replicas(one.metrics_url) == 1 for one in cluster.members), 20, "a replica on each")
        yield cluster


def replicas(metrics_url: str) -> float:
    return read_metrics(metrics_url).total("jouleserve_replicas")


def answered(cluster: Machines) -> list[float]:
    """Requests answered, by machine."""
    return [read_metrics(one.metrics_url).total("jouleserve_requests_total", outcome="ok") for one in cluster.members]


def test_the_counts_of_both_machines_add_up_to_what_the_clients_asked(cluster: Machines) -> None:
    before = answered(cluster)
    with load(cluster, itertools.cycle(QUESTIONS), CLIENTS) as answers:
        time.sleep(4)
    assert set(statuses(answers)) == {200}
    wait_for(lambda: sum(answered(cluster)) - sum(before) >= len(answers), 10, "all is settled")
    counts = [now - then for now, then in zip(answered(cluster), before, strict=True)]
    assert sum(counts) == len(answers)
    assert all(count > 0 for count in counts)
    for machine in cluster.members:
        books = HTTP.get(f"{machine.metrics_url}/conservation", timeout=10).json()
        assert books["attributed_joules"] > 0
        assert books["error_ratio"] <= 0.001


def test_grpc_reaches_the_replicas_of_both_machines(cluster: Machines) -> None:
    """Here they share the port, and the kernel hands a connection to one of them; in pods each has its own."""
    before = answered(cluster)
    for _ in range(MOST_CONNECTIONS):
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each channel
        with grpc.insecure_channel(f"127.0.0.1:{GRPC_PORT}", options) as channel:
            reply = PredictorStub(channel).Predict(PredictRequest(texts=["refund w1"]), timeout=20)
        assert reply.predictions[0].labels[0] == "refund"
    wait_for(lambda: sum(answered(cluster)) - sum(before) == MOST_CONNECTIONS, 10, "all is settled")
    assert all(now > then for now, then in zip(answered(cluster), before, strict=True))


def test_the_dial_reaches_both_machines_and_their_books(cluster: Machines, store: Store) -> None:
    head = Place(store.root, "tiny", cluster.members[0].run_dir)
    head.jouleserve("tune", "shaping.policy=pin", "shaping.pin_point=lite")

    def shown() -> set[frozenset[str]]:
        return {
            frozenset(read_metrics(one.metrics_url).label_values("jouleserve_dial_info", "point"))
            for one in cluster.members
        }

    wait_for(lambda: shown() == {frozenset({"lite"})}, TOLD_WITHIN_S, "the dial is shown by both")

    def taken() -> bool:
        before = [_asked(one.metrics_url, "lite") for one in cluster.members]
        with load(cluster, itertools.cycle(QUESTIONS), CLIENTS) as answers:
            time.sleep(1)
        time.sleep(1.5)
        after = [_asked(one.metrics_url, "lite") for one in cluster.members]
        rises = [now - then for now, then in zip(after, before, strict=True)]
        return all(rises) and sum(rises) == len(answers)

    wait_for(taken, TOLD_WITHIN_S, "both machines answer by the new point alone")


def _asked(metrics_url: str, point: str) -> float:
    return read_metrics(metrics_url).total("jouleserve_requests_total", point=point)


def test_one_process_in_the_cluster_asks_the_provider_and_both_machines_show_its_reading(
    cluster: Machines, feed: Feed
) -> None:
    def shown() -> set[float]:
        return {
            read_metrics(one.metrics_url).total("jouleserve_grid_intensity_grams_per_kwh") for one in cluster.members
        }

    feed.grams = 123
    asked, began = feed.asked, time.monotonic()
    wait_for(lambda: shown() == {123.0}, TOLD_WITHIN_S, "both show the reading")
    time.sleep(3)
    most = (time.monotonic() - began) / (POLL_S * (1 - JITTER)) + 1
    assert 0 < feed.asked - asked <= most, "two would ask twice as often"


def test_jobs_are_kept_by_the_conductor_and_asked_for_at_any_replica(cluster: Machines) -> None:
    body = {"inputs": [["refund"]] * 40, "within_s": 600}
    made = HTTP.post(f"{cluster.url}/jobs", json=body, timeout=20)
    assert made.status_code == 201
    place = f"{cluster.url}/jobs/{made.json()['id']}"
    wait_for(lambda: HTTP.get(place, timeout=20).json()["state"] == "done", 30, "the job is done")
    results = HTTP.get(f"{place}/results", timeout=20).json()["results"]
    assert {one["predictions"][0]["label"] for one in results} == {"refund"}


def test_a_machine_that_dies_under_load_loses_at_most_what_was_in_flight_on_it(cluster: Machines) -> None:
    head, other = cluster.members
    survivor_before = read_metrics(head.metrics_url).total("jouleserve_attributed_joules_total")
    with load(cluster, itertools.cycle(QUESTIONS), CLIENTS, retries=1, pause_s=0.005) as answers:
        time.sleep(2)
        other.kill()
        time.sleep(6)
    tries = Counter(answer.tries for answer in answers)
    assert set(statuses(answers)) == {200}, "one retry was not enough"
    assert tries[2] <= CLIENTS
    assert len(answers) > 200
    assert read_metrics(head.metrics_url).total("jouleserve_attributed_joules_total") > survivor_before


def test_a_machine_that_is_told_to_leave_answers_what_it_accepted(cluster: Machines) -> None:
    """Runs last: nothing serves afterwards but a machine that is new."""
    newcomer = cluster.add(cpus=1)
    wait_for(lambda: replicas(newcomer.metrics_url) == 1, 60, "a replica in the place of the lost one")
    command = [sys.executable, "-m", "server.leave", "--within=8", f"--node-id={cluster.node_id(newcomer)}"]
    command.append(f"--address={cluster.members[0].address}:{cluster.port}")
    with load(cluster, itertools.cycle(QUESTIONS), CLIENTS, pause_s=0.005) as answers:
        left = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=60)
    assert left.returncode == 0, left.stdout + left.stderr
    assert "nothing serves here any more" in left.stdout
    assert set(statuses(answers)) == {200}
