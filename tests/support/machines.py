"""A cluster of Ray nodes on this machine, each with what a machine of its own would have: an address, a run folder, a
node process. A machine is killed with everything that runs on it.

The nodes are started as KubeRay starts them, by `ray start`, and the application is handed to Ray's dashboard, as
KubeRay hands it over.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from loadtest.http import HTTP
from loadtest.served import free_port
from server.lean import InnerPorts, lean_environment, write_haproxy_wrapper

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 90.0


@dataclass
class Machine:
    """A Ray node and its node process."""

    address: str
    run_dir: Path
    ray: subprocess.Popen[bytes]
    node: subprocess.Popen[bytes]
    metrics_url: str

    def kill(self) -> None:
        """Everything that runs there ends at once."""
        everything = [process for root in (self.ray, self.node) for process in _tree(root.pid)]
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        for root in (self.ray, self.node):
            root.wait(10)


@dataclass
class Machines:
    """The cluster: the first machine is the head. `environment` is what every process of it has."""

    folder: Path
    environment: dict[str, str]
    port: int
    dashboard_url: str
    url: str
    members: list[Machine]

    def node_id(self, machine: Machine) -> str:
        """Ray's id of a machine."""
        with self._dashboard() as dashboard:
            nodes = dashboard.get("/nodes?view=summary").json()["data"]["summary"]
        return next(one["raylet"]["nodeId"] for one in nodes if one["ip"] == machine.address)

    def _dashboard(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        return httpx.Client(base_url=self.dashboard_url, headers=headers, timeout=30)

    def add(self, cpus: int) -> Machine:
        """Start another machine."""
        machine = _start_machine(self, len(self.members) + 1, cpus)
        self.members.append(machine)
        return machine

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Hand a Serve config over and wait until its application runs. Raises RuntimeError with what Serve says."""
        with self._dashboard() as dashboard:
            _until(lambda: _answers(dashboard), "the dashboard answers")
            dashboard.put("/api/serve/applications/", json=config).raise_for_status()
            said: Any = None

            def runs() -> bool:
                nonlocal said
                said = dashboard.get("/api/serve/applications/").json()["applications"]
                states = {application["status"] for application in said.values()}
                if "DEPLOY_FAILED" in states:
                    raise RuntimeError(yaml.safe_dump(said))
                return states == {"RUNNING"}

            try:
                _until(runs, "the application runs")
            except TimeoutError as error:
                raise RuntimeError(yaml.safe_dump(said)) from error


@contextlib.contextmanager
def machines(folder: Path, cpus: int) -> Iterator[Machines]:
    """A cluster with a head; nothing of it is left at the end."""
    ports = InnerPorts.choose()
    head_dir = folder / "m1"
    head_dir.mkdir(parents=True)
    write_haproxy_wrapper(head_dir, "0.0.0.0", ports)
    port, dashboard, http = free_port(), free_port(), free_port()
    environment = {
        **os.environ,
        **lean_environment(head_dir, ports),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_health_check_period_ms": "1000",  # a dead machine is noticed after five of them
    }
    del environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]  # it keeps a server to its own machine
    cluster = Machines(
        folder, environment, port, f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{http}", members=[]
    )
    try:
        cluster.add(cpus)
        yield cluster
    finally:
        for machine in cluster.members:
            machine.kill()


def _start_machine(cluster: Machines, number: int, cpus: int) -> Machine:
    address, run_dir = f"127.0.0.{number + 1}", cluster.folder / f"m{number}"  # Ray refuses 127.0.0.1
    run_dir.mkdir(exist_ok=True)
    metrics_port = free_port()
    environment = {
        **cluster.environment,
        "JOULESERVE_SERVER__RUN_DIR": str(run_dir),
        "JOULESERVE_SERVER__METRICS_PORT": str(metrics_port),
    }
    command = [str(BIN / "ray"), "start", "--block", f"--node-ip-address={address}", f"--num-cpus={cpus}"]
    command += ["--object-store-memory=80000000", "--disable-usage-stats"]
    if number == 1:
        dashboard_port = cluster.dashboard_url.rsplit(":", 1)[1]
        command += ["--head", f"--port={cluster.port}", f"--dashboard-port={dashboard_port}"]
        command += [f"--temp-dir={cluster.folder / 'ray'}", "--include-dashboard=true"]
    else:
        command.append(f"--address={cluster.members[0].address}:{cluster.port}")
    with (cluster.folder / f"ray-{number}.log").open("wb") as log:
        ray = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    meter = [sys.executable, "-m", "server.node", f"--run-dir={run_dir}", f"--port={metrics_port}", "--root-pid=0"]
    with (cluster.folder / f"node-{number}.log").open("wb") as log:
        node = subprocess.Popen(
            [*meter, "--source=estimated"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    machine = Machine(address, run_dir, ray, node, f"http://127.0.0.1:{metrics_port}")
    _until(lambda: _healthy(machine), f"the node process of machine {number} answers")
    return machine


def _healthy(machine: Machine) -> bool:
    return HTTP.get(f"{machine.metrics_url}/healthz", timeout=2).status_code == 200


def _answers(dashboard: httpx.Client) -> bool:
    return dashboard.get("/api/serve/applications/").status_code == 200


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _until(condition: Any, what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.2)
