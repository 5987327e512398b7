"""`python -m server.leave --within SECONDS`: take this machine out of its Ray cluster before it is stopped.

A pod's preStop hook. Ray marks the node as draining; Serve starts its replicas elsewhere, takes those of this node out
of HAProxy and ends them when what they accepted is answered. Waits until none is left here, at most `--within` seconds.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

POLL_S = 0.5
REASON = "the machine is about to stop"
REPLICA_NAMES = "SERVE_REPLICA::"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when nothing serves here any more, 1 if something still did at the end of the time."""
    parser = argparse.ArgumentParser(prog="python -m server.leave", description=__doc__)
    parser.add_argument("--within", type=float, required=True, help="seconds that requests in flight may take")
    parser.add_argument("--address", default="auto", help="the cluster's GCS; auto: that of this machine")
    parser.add_argument("--node-id", default=None, help="Ray's id of the node; default: this machine's")
    given = parser.parse_args(arguments)
    return 0 if leave(given.address, given.node_id, given.within) else 1


def leave(address: str, node_id: str | None, within_s: float) -> bool:
    """Drain the node and wait; whether it serves no more."""
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    deadline_s = time.time() + within_s
    context: Any = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    node = node_id or ray.get_runtime_context().get_node_id()
    # No public API drains a node; `ray drain-node` calls the same.
    client = ray._raylet.GcsClient(address=context.address_info["gcs_address"])
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = client.drain_node(node, reason, REASON, round(deadline_s * 1000))
    if not accepted:
        print(f"Ray does not drain node {node}: {why}", file=sys.stderr)
        return False
    print(f"node {node} is draining; waiting at most {within_s:g} s")
    while time.time() < deadline_s:
        if not _serves(node):
            print("nothing serves here any more")
            return True
        time.sleep(POLL_S)
    print("time is up; what is in flight here is lost", file=sys.stderr)
    return False


def _serves(node: str) -> bool:
    """Whether a replica is alive on the node."""
    from ray._private.state import actors

    return any(
        actor["State"] == "ALIVE" and actor["Address"]["NodeID"] == node and actor["Name"].startswith(REPLICA_NAMES)
        for actor in actors().values()
    )


if __name__ == "__main__":
    sys.exit(main())
