"""What is changed in Ray's own processes, as far as it can be seen without Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.api.http import READ_TIMEOUT_S
from server.lean import REPLICA_PORTS, REPLICA_WINDOW, InnerPorts, lean_environment, proxy_dir, write_haproxy_wrapper
from server.lean_ray import _on_loopback, _with_quiet_agent
from server.quiet_agent import NOT_OFFERED, SERVICES


@pytest.mark.parametrize(
    "script", ["/v/ray/dashboard/agent.py", '"/a folder/ray/dashboard/agent.py"'], ids=["plain", "with a blank"]
)
def test_the_dashboard_agents_script_is_replaced_and_its_arguments_stay(script: str) -> None:
    command = f"--dashboard_agent_command=/v/bin/python -u {script} --session-dir=/s --node-id=n1"
    assert _with_quiet_agent(command) == (
        "--dashboard_agent_command=/v/bin/python -u -m server.quiet_agent --session-dir=/s --node-id=n1"
    )


def test_other_arguments_of_the_raylet_stay_as_they_are() -> None:
    for word in ("--node_id=1", "--runtime_env_agent_command=python /v/ray/dashboard/agent.py"):
        assert _with_quiet_agent(word) == word


def test_a_grpc_server_is_bound_to_loopback_whatever_ray_asks_for() -> None:
    asked: list[str] = []
    add = _on_loopback(lambda server, address: asked.append(address))
    for address in ("[::]:0", "0.0.0.0:9000", "127.0.0.1:1"):
        add(None, address)
    assert asked == ["127.0.0.1:0", "127.0.0.1:9000", "127.0.0.1:1"]


def test_the_quiet_agent_announces_and_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time, pathlib\n"
        f"agent = subprocess.Popen([sys.executable, '-m', 'server.quiet_agent', '--session-dir={tmp_path}',"
        " '--node-id=n1', '--unknown=1'])\n"
        "print(agent.pid, flush=True)\n"
        f"wanted = [pathlib.Path({str(tmp_path)!r}, f'{{name}}_n1') for name in {SERVICES!r}]\n"
        "deadline = time.monotonic() + 30\n"
        "while not all(path.exists() for path in wanted) and time.monotonic() < deadline: time.sleep(0.02)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    agent = int(parent.stdout.readline())
    handle = os.pidfd_open(agent)
    assert parent.wait(60) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        f"{name}_n1": NOT_OFFERED for name in SERVICES
    }
    import select

    waiting = select.poll()
    waiting.register(handle, select.POLLIN)
    assert waiting.poll(30_000), "the agent outlived its parent"
    os.close(handle)


def test_each_server_gets_a_window_of_replica_ports_of_its_own(tmp_path: Path) -> None:
    ports = InnerPorts.choose()
    assert len(ports.replicas) == REPLICA_WINDOW
    assert set(ports.replicas) <= set(REPLICA_PORTS)
    environment = lean_environment(tmp_path, ports)
    low, high = (int(environment[f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT"]) for end in ("MIN", "MAX"))
    grpc_low, grpc_high = (int(environment[f"RAY_SERVE_DIRECT_INGRESS_{end}_GRPC_PORT"]) for end in ("MIN", "MAX"))
    assert ports.replicas.start == low < high < grpc_low < grpc_high == ports.replicas.stop - 1


@pytest.mark.parametrize(
    ("host", "bind", "starts"),
    [
        ("127.0.0.1", "127.0.0.1:{port}", True),
        ("::1", "::1:{port}", True),
        ("0.0.0.0", "0.0.0.0:{port}", True),
        ("::", ":::{port}", True),
        *(("127.0.0.1", one + "{port}", False) for one in (":", "*:", ":::", "[::]:", "0.0.0.0:")),
    ],
)
def test_haproxy_does_not_start_where_it_would_listen_to_the_world_unasked(
    tmp_path: Path, host: str, bind: str, starts: bool
) -> None:
    ports = InnerPorts.choose()
    write_haproxy_wrapper(tmp_path, host, ports)
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n"
        f"frontend front\n    bind {bind.format(port=ports.fallback_http)}\n    http-request return status 200\n"
    )
    wrapper = proxy_dir(tmp_path) / "haproxy"
    checked = subprocess.run([wrapper, "-db", "-f", config, "-c"], capture_output=True, text=True, timeout=30)
    assert (checked.returncode == 0) == starts, checked.stderr
    assert ("all interfaces" in checked.stderr) != starts


def test_haproxy_without_a_replica_answers_as_the_server_would(tmp_path: Path) -> None:
    """The wrapper turns Ray's bare 500 and its 404 into a 503 in JSON with Retry-After."""
    ports = InnerPorts.choose()
    write_haproxy_wrapper(tmp_path, "127.0.0.1", ports)
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n"
        "    errorfile 503 /nowhere/500.http\n    errorfile 504 /nowhere/500.http\n"
        f"frontend stats\n    bind *:{ports.haproxy_stats}\n    default_backend default_backend\n"
        "backend default_backend\n"
        "    http-request return status 404 content-type text/plain lf-string \"Path '%[path]' not found.\"\n"
    )
    wrapper = proxy_dir(tmp_path) / "haproxy"
    checked = subprocess.run([wrapper, "-db", "-f", config, "-c"], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr
    tight = Path(f"{config}.tight").read_text()
    assert f"bind 127.0.0.1:{ports.haproxy_stats}" in tight
    assert "status 503 content-type application/json" in tight
    assert "/nowhere" not in tight
    assert f"timeout http-request {READ_TIMEOUT_S:.0f}s" in tight
    assert int(lean_environment(tmp_path, ports)["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"]) == READ_TIMEOUT_S
