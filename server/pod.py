"""What a pod of a cluster is given where `jouleserve up` would choose: Ray's environment and HAProxy's wrapper.

The ports are the same in every pod, for each has a network of its own. `python -m server.pod` runs before Ray starts.
"""

from __future__ import annotations

import sys
from pathlib import Path

from server.lean import InnerPorts, lean_environment, proxy_dir, write_haproxy_wrapper

RUN_DIR = Path("/var/lib/jouleserve/run")
PORTS = InnerPorts(
    haproxy_metrics=8405,
    haproxy_stats=8404,
    fallback_http=8500,
    fallback_grpc=9500,
    replicas=range(20_000, 20_064),
)
NOT_IN_PODS = (
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",  # keeps Ray to one machine
    "RAY_AUTH_MODE",  # whoever starts the cluster hands out its token
    "RAY_health_check_period_ms",  # how soon a dead machine is noticed: there is only one where it is set
    "PYTHONPATH",  # the packages are installed
)


def pod_environment() -> dict[str, str]:
    """Environment of every Ray process of a pod."""
    everything = lean_environment(RUN_DIR, PORTS)
    return {name: value for name, value in everything.items() if name not in NOT_IN_PODS}


def main() -> int:
    """Write the wrapper; says where."""
    write_haproxy_wrapper(RUN_DIR, "0.0.0.0", PORTS)
    print(f"HAProxy's wrapper is in {proxy_dir(RUN_DIR)}; Ray may start")
    return 0


if __name__ == "__main__":
    sys.exit(main())
