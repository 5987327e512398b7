"""How many replicas Ray Serve runs: as many as the requests in flight ask for.

Serve's own count of requests misses those of the fast lane, so each replica reports what its engine has in flight, and
the policy below goes by that. It decides nothing but the number: Serve applies bounds and delays to it.
"""

from __future__ import annotations

from typing import Any

from server.settings import ServerSettings

IN_FLIGHT = "requests_in_flight"
"""Name of the figure in `record_autoscaling_stats`, which Serve asks every replica for."""
POLICY = "server.scaling:by_requests_in_flight"


def autoscaling_config(server: ServerSettings) -> dict[str, Any] | None:
    """Serve's `autoscaling_config`; None where the number of replicas is fixed."""
    if server.max_replicas is None:
        return None
    return {
        "min_replicas": server.replicas,
        "max_replicas": server.max_replicas,
        "target_ongoing_requests": server.target_requests_in_flight,
        "policy": {"policy_function": POLICY},
    }


def by_requests_in_flight(context: Any) -> tuple[float, dict[str, Any]]:
    """Replicas wanted (a fraction is rounded up) by a `ray.serve.config.AutoscalingContext`, and no state to keep.

    As many as there are, as long as no replica has reported.
    """
    reported = (context.aggregated_metrics or {}).get(IN_FLIGHT)
    if not reported:
        return context.target_num_replicas, {}
    return sum(reported.values()) / context.config.get_target_ongoing_requests(), {}
