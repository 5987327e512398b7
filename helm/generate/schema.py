"""values.schema.json: what the chart can be told, the server's settings among it.

A value that is misspelt, or that only the chart may set, is refused before anything reaches a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.settings import Settings

Schema = dict[str, Any]

CHARTS_OWN = {
    "ServerSettings": ("host", "run_dir", "api_keys_file", "admin_keys_file"),
    "ModelSettings": ("store",),
    "CacheSettings": ("redis_password_file",),
    "GridSettings": ("secret", "secret_file"),
    "EnergySettings": ("node_dir",),
    "JobsSettings": ("path",),
}
"""Settings that the chart sets itself, or that belong into a Secret."""

TOLD_ELSEWHERE = ("default", "description", "title")
"""`jouleserve config` tells them; a chart that repeated them would change with every word."""

TEXT: Schema = {"type": "string"}
YES_NO: Schema = {"type": "boolean"}
ANY_MAP: Schema = {"type": "object"}
ANY_LIST: Schema = {"type": "array"}
WORDS: Schema = {"type": "object", "additionalProperties": TEXT}
"""Labels and annotations: Kubernetes refuses numbers and truth values there."""
QUANTITY: Schema = {"type": "string", "pattern": "^[0-9]+([.][0-9]+)?(k|Ki|[MGTPE]i?)?$"}
RESOURCES: Schema = {
    "type": "object",
    "properties": {"requests": ANY_MAP, "limits": ANY_MAP},
    "additionalProperties": False,
}


def section(properties: Mapping[str, Schema], description: str = "") -> Schema:
    """A group of values in which nothing else may stand."""
    told = {"description": description} if description else {}
    return {"type": "object", **told, "properties": dict(properties), "additionalProperties": False}


def whole(least: int, most: int | None = None) -> Schema:
    """A whole number of at least, and at most."""
    return {"type": "integer", "minimum": least, **({} if most is None else {"maximum": most})}


def choice(*words: str) -> Schema:
    """One of a few words."""
    return {"enum": list(words)}


def secret(description: str) -> Schema:
    """A reference to a key of a Secret."""
    return section({"name": TEXT, "key": {"type": "string", "minLength": 1}}, description)


def values_schema() -> Schema:
    """The schema of values.yaml."""
    settings = Settings.model_json_schema()
    definitions = {
        name: _without(schema, CHARTS_OWN.get(name, ())) for name, schema in settings.pop("$defs", {}).items()
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the jouleserve chart",
        **section(_sections(_closed(settings))),
        "definitions": _with_definitions(definitions),
    }


def _sections(settings: Schema) -> dict[str, Schema]:
    return {
        "global": ANY_MAP,
        "mode": choice("Deployment", "RayService"),
        "image": section(
            {
                "repository": {"type": "string", "minLength": 1},
                "tag": TEXT,
                "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
                "pullPolicy": choice("Always", "IfNotPresent", "Never"),
                "pullSecrets": ANY_LIST,
            }
        ),
        "settings": _with_definitions(settings),
        "store": section({"claim": TEXT, "subPath": TEXT, "url": TEXT, "size": QUANTITY, "envFrom": ANY_LIST}),
        "secrets": section(
            {
                "apiKeys": secret("the file of API keys"),
                "adminKeys": secret("the file of keys that may tune over HTTP"),
                "grid": secret("token or password of the grid's provider"),
                "redis": secret("password of settings.cache.redis_url"),
            }
        ),
        "deployment": section({"replicas": whole(0, 1000), "edge": YES_NO}),
        "ray": section(
            {
                "version": TEXT,
                "tokenAuth": YES_NO,
                "objectStoreBytes": whole(80_000_000),
                "head": section({"resources": RESOURCES}),
                "workers": section({"min": whole(1, 1000), "max": whole(1, 1000), "idleTimeoutSeconds": whole(1)}),
            }
        ),
        "resources": RESOURCES,
        "gpu": section({"count": whole(0, 64), "resource": TEXT, "runtimeClassName": TEXT}),
        "sharedMemory": QUANTITY,
        "nodeSelector": WORDS,
        "tolerations": ANY_LIST,
        "affinity": ANY_MAP,
        "topologySpread": section(
            {
                "enabled": YES_NO,
                "topologyKey": TEXT,
                "whenUnsatisfiable": choice("DoNotSchedule", "ScheduleAnyway"),
            }
        ),
        "podAnnotations": WORDS,
        "podLabels": WORDS,
        "extraEnv": ANY_LIST,
        "extraVolumes": ANY_LIST,
        "extraVolumeMounts": ANY_LIST,
        "jobs": section({"claim": TEXT}),
        "scratch": section({"tmp": QUANTITY, "run": QUANTITY}),
        "metering": section(
            {
                "mode": choice("pod", "daemonset"),
                "runDir": {"type": "string", "pattern": "^/[A-Za-z0-9/_.-]{1,40}$"},
                "resources": RESOURCES,
            }
        ),
        "service": section(
            {
                "type": choice("ClusterIP", "NodePort", "LoadBalancer"),
                "port": whole(1, 65535),
                "annotations": WORDS,
            }
        ),
        "networkPolicy": section({"enabled": YES_NO, "clients": ANY_LIST, "metrics": ANY_LIST, "operator": ANY_LIST}),
        "podDisruptionBudget": section({"enabled": YES_NO, "maxUnavailable": {"type": ["integer", "string"]}}),
        "monitoring": section(
            {
                "monitor": YES_NO,
                "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                "rules": YES_NO,
                "runbookUrl": {"type": "string", "minLength": 1},
                "dashboards": YES_NO,
                "labels": WORDS,
            }
        ),
        "keda": section(
            {
                "enabled": YES_NO,
                "prometheusUrl": TEXT,
                "min": whole(1),  # none would count no request, and never become one
                "max": whole(1),
                "requestsInFlight": whole(1),
            }
        ),
        "serviceAccount": section({"annotations": WORDS}),
        "podSecurityContext": ANY_MAP,
        "securityContext": ANY_MAP,
        "preStopSeconds": whole(0, 120),
    }


def _without(schema: Schema, names: tuple[str, ...]) -> Schema:
    properties = {name: value for name, value in schema.get("properties", {}).items() if name not in names}
    return _closed({**schema, "properties": properties}) if "properties" in schema else schema


def _closed(schema: Schema) -> Schema:
    return {**schema, "additionalProperties": False}


def _with_definitions(schema: Any) -> Any:
    """The schema as draft 7 has it."""
    if isinstance(schema, Mapping):
        kept = {name: value for name, value in schema.items() if name not in TOLD_ELSEWHERE or isinstance(value, dict)}
        return {
            name: value.replace("#/$defs/", "#/definitions/") if name == "$ref" else _with_definitions(value)
            for name, value in kept.items()
        }
    if isinstance(schema, list):
        return [_with_definitions(item) for item in schema]
    return schema
