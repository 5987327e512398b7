"""Where gRPC listens is checked before anything starts."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import ValidationError

from loadtest.served import free_port
from models.store import Store
from server.api.replies import Replies
from server.engine.family import Family
from server.lifetime import check_ports
from server.rpc import check_installed
from server.rpc.proto.predictor_pb2 import PredictReply, PredictRequest
from server.rpc.server import RpcServer
from server.settings import ServerSettings, Settings
from server.start_error import StartError
from tests.support.engines import running
from tests.support.rpc import PREDICT, Meter
from tests.support.tiny_family import publish_tiny_family


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def settings_with(port: int | None) -> Settings:
    return Settings.model_validate({"server": {"port": 18_765, "metrics_port": 18_766, "grpc_port": port}})


def test_a_port_of_a_stranger_is_refused_though_the_stranger_would_share_it() -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        with pytest.raises(StartError, match=rf"server.grpc_port: cannot listen on 127.0.0.1:{port}"):
            check_ports(settings_with(port))
    check_ports(settings_with(port))


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_port_is_looked_for_at_the_address_that_is_meant() -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = Settings.model_validate({"server": {"host": "::1", "port": port, "metrics_port": 18_766}})
        with pytest.raises(StartError, match=rf"server.port: cannot listen on \[::1\]:{port}"):
            check_ports(settings)
    check_ports(settings)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_calls_are_taken_over_ipv6(family: Family) -> None:
    async with running(family) as (engine, usage):
        port = free_port()
        server = RpcServer(Replies(engine, Meter(), 1000, usage), "::1", port, 1000)
        await server.start()
        async with grpc.aio.insecure_channel(f"[::1]:{port}") as channel:
            message = PredictRequest(texts=["card"]).SerializeToString()
            reply = PredictReply.FromString(await channel.unary_unary(PREDICT)(message, timeout=20))
        await server.stop()
        assert reply.predictions[0].labels[0] == "card"


def test_a_name_that_is_no_address_is_refused_with_its_setting() -> None:
    settings = Settings.model_validate({"server": {"host": "no such host", "port": 18_765, "metrics_port": 18_766}})
    with pytest.raises(StartError, match=r"server\.port: cannot listen on no such host:18765"):
        check_ports(settings)


def test_no_port_is_opened_unless_it_is_asked_for() -> None:
    assert ServerSettings().grpc_port is None
    check_ports(settings_with(None))


@pytest.mark.parametrize("other", ["port", "metrics_port"])
def test_grpc_has_a_port_of_its_own(other: str) -> None:
    with pytest.raises(ValidationError, match="grpc_port"):
        ServerSettings.model_validate({other: 5000, "grpc_port": 5000})


def test_missing_packages_are_named_with_the_extra_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> Any:
        return None if name == "grpc_health" else object()

    monkeypatch.setattr("server.rpc.find_spec", find_spec)
    with pytest.raises(StartError, match=r"grpc_health.*pip install '\.\[grpc\]'"):
        check_installed()


def test_the_command_refuses_a_taken_port_before_anything_starts(tmp_path: Path) -> None:
    publish_tiny_family(Store(tmp_path / "store"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "server.cli", "up", "--edge", "--family", "tiny", "--grpc-port", port]
        command += ["--store", str(tmp_path / "store"), "--set", f"server.port={free_port()}"]
        command += ["--set", f"server.metrics_port={free_port()}", "--set", f"server.run_dir={tmp_path / 'run'}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"server.grpc_port: cannot listen on 127.0.0.1:{port}" in done.stderr
