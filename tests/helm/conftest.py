"""The chart, rendered by Helm itself (its library, in the package helm-python-sdk)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm_python as helm  # of tests/helm/requirements.lock
import pytest
import yaml

from server.node.settings import NodeSettings

CHART = Path(__file__).parents[2] / "helm" / "jouleserve"
STORE = {"store": {"claim": "models"}}

Manifests = list[dict[str, Any]]
Render = Callable[..., Manifests]


@pytest.fixture(scope="session")
def chart() -> Any:
    with helm.Chart.load(CHART) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def render(chart: Any) -> Render:
    """Renders the chart with values over a claim as the store."""

    def rendered(**values: Any) -> Manifests:
        told = {**({} if "store" in values else STORE), **values}
        chart.validate_schema(told)
        files = chart.render(told, name="demo", namespace="prod")
        documents = (yaml.safe_load_all(text) for name, text in sorted(files.items()) if not name.endswith(".txt"))
        return [document for one in documents for document in one if document]

    return rendered


def of_kind(manifests: Manifests, kind: str, name: str | None = None) -> dict[str, Any]:
    """The one manifest of that kind (and name)."""
    found = [one for one in manifests if one["kind"] == kind and (name is None or one["metadata"]["name"] == name)]
    assert len(found) == 1, f"{kind}: {[one['metadata']['name'] for one in found]}"
    return found[0]


def kinds(manifests: Manifests) -> set[str]:
    return {one["kind"] for one in manifests}


def pod_templates(manifests: Manifests) -> dict[str, dict[str, Any]]:
    """Every pod template, by what it is of."""
    found: dict[str, dict[str, Any]] = {}
    for one in manifests:
        if one["kind"] in ("Deployment", "DaemonSet"):
            found[one["kind"]] = one["spec"]["template"]
        if one["kind"] == "RayService":
            cluster = one["spec"]["rayClusterConfig"]
            found["head"] = cluster["headGroupSpec"]["template"]
            found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return found


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    """All of a pod, those that run first included."""
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def node_process(template: dict[str, Any]) -> NodeSettings:
    """The node process's settings by its own parser, which ends the test if it refuses them."""
    container = next(one for one in template["spec"]["containers"] if one["name"] == "node")
    assert container["command"] == ["python", "-m", "server.node"]
    return NodeSettings.from_arguments(container["args"])
