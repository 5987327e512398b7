"""Kubernetes, KubeRay, the Prometheus operator and KEDA would accept what the chart renders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.helm.conftest import Render, pod_templates
from tests.helm.value_sets import SETS

KUBERNETES = ("1.30", "1.37")
OURS = yaml.safe_load((Path(__file__).parent / "crds.yaml").read_text())


def check_custom(manifest: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError."""
    kind = OURS["kinds"][manifest["kind"]]
    schema = {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": kind["apiVersion"]},
            "kind": {},
            "metadata": {"$ref": "#/definitions/metadata"},
            "spec": kind["spec"],
        },
        "additionalProperties": False,
        "definitions": OURS["definitions"],
    }
    jsonschema.validate(manifest, schema)


def check_kubernetes(manifest: dict[str, Any], version: str) -> None:
    """Raises kubernetes_validate.ValidationError."""
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_everything_that_is_rendered_is_valid(render: Render, values: dict[str, Any]) -> None:
    manifests = render(**values)
    for manifest in manifests:
        if manifest["kind"] in OURS["kinds"]:
            check_custom(manifest)
        else:
            for version in KUBERNETES:
                check_kubernetes(manifest, version)
    for template in pod_templates(manifests).values():
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        check_kubernetes(pod, KUBERNETES[0])


def test_a_field_that_kubernetes_does_not_know_is_found(render: Render) -> None:
    template = pod_templates(render(mode="RayService"))["servers"]
    template["spec"]["containers"][0]["ressources"] = {}
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
    with pytest.raises(kubernetes_validate.ValidationError):
        check_kubernetes(pod, KUBERNETES[0])


@pytest.mark.parametrize(("field", "value"), [("rayVersion", 2.6), ("headGroup", {}), ("authOptions", {"mode": "key"})])
def test_a_field_that_kuberay_does_not_take_is_found(render: Render, field: str, value: Any) -> None:
    service = next(one for one in render(mode="RayService") if one["kind"] == "RayService")
    service["spec"]["rayClusterConfig"][field] = value
    with pytest.raises(jsonschema.ValidationError):
        check_custom(service)
