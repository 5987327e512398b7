"""Values that people would give, by what they are for."""

from __future__ import annotations

from typing import Any

import pytest

EVERYTHING_WATCHED = {"monitor": True, "rules": True, "dashboards": True, "labels": {"release": "prometheus"}}
SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "edge": {"deployment": {"edge": True, "replicas": 2}, "monitoring": EVERYTHING_WATCHED},
    "keys, gRPC and Redis": {
        "settings": {"server": {"grpc_port": 8001}, "cache": {"redis_url": "redis://cache:6379/0"}},
        "secrets": {"apiKeys": {"name": "keys"}, "adminKeys": {"name": "keys"}, "redis": {"name": "redis"}},
    },
    "models from a bucket, a paid grid": {
        "store": {"url": "s3://bucket/store", "envFrom": [{"secretRef": {"name": "bucket"}}]},
        "settings": {"grid": {"provider": "electricity_maps", "zone": "DE"}},
        "secrets": {"grid": {"name": "grid", "key": "token"}},
    },
    "RAPL by a daemonset": {"metering": {"mode": "daemonset"}, "monitoring": EVERYTHING_WATCHED},
    "KEDA": {"keda": {"enabled": True, "max": 8}, "monitoring": EVERYTHING_WATCHED},
    "KubeRay": {"mode": "RayService", "monitoring": EVERYTHING_WATCHED},
    "KubeRay that scales, with GPUs": {
        "mode": "RayService",
        "settings": {"server": {"replicas": 2, "max_replicas": 6, "drain_timeout_s": 45, "grpc_port": 8001}},
        "ray": {"workers": {"min": 2, "max": 6}},
        "gpu": {"count": 1, "runtimeClassName": "nvidia"},
        "secrets": {"apiKeys": {"name": "keys"}},
    },
    "KubeRay and RAPL": {"mode": "RayService", "metering": {"mode": "daemonset"}, "monitoring": EVERYTHING_WATCHED},
    "files of one's own, and jobs that outlive pods": {
        "jobs": {"claim": "jobs"},
        "extraVolumes": [{"name": "files", "configMap": {"name": "files"}}],
        "extraVolumeMounts": [{"name": "files", "mountPath": "/etc/jouleserve/files", "readOnly": True}],
    },
    "KubeRay and jobs that outlive pods": {"mode": "RayService", "jobs": {"claim": "jobs"}},
    "nothing optional": {
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "topologySpread": {"enabled": False},
    },
}
every_set = pytest.mark.parametrize("values", SETS.values(), ids=SETS)
