"""Where the chart's node processes run, and what they see."""

from __future__ import annotations

import pytest
import yaml

from server.pod import RUN_DIR
from tests.helm.conftest import Render, node_process, of_kind, pod_templates
from tests.helm.value_sets import SETS


def test_under_kuberay_every_pod_has_a_node_process_in_sight_of_its_replicas(render: Render) -> None:
    settings = {"energy": {"pue": 1.3, "tick_s": 2, "source": "estimated"}, "server": {"metrics_port": 9500}}
    for template in pod_templates(render(mode="RayService", settings=settings)).values():
        node = node_process(template)
        assert (node.run_dir, node.port, node.root_pid) == (RUN_DIR, 9500, 0)
        assert (node.pue, node.tick_seconds, node.energy_source) == (1.3, 2, "estimated")
        assert template["spec"]["shareProcessNamespace"] is True


@pytest.mark.parametrize("name", ["RAPL by a daemonset", "KubeRay and RAPL"])
def test_rapl_is_read_by_one_process_a_machine_that_the_servers_report_to(render: Render, name: str) -> None:
    manifests = render(**SETS[name])
    daemon = of_kind(manifests, "DaemonSet")["spec"]["template"]["spec"]
    node = node_process({"spec": daemon})
    settings = yaml.safe_load(of_kind(manifests, "ConfigMap", "demo-jouleserve")["data"]["jouleserve.yaml"])
    assert str(node.run_dir) == settings["energy"]["node_dir"] == "/run/jouleserve/prod-demo-jouleserve"
    assert daemon["hostPID"] is True
    assert daemon["securityContext"]["runAsUser"] == 0
    host = {one["name"]: one["hostPath"]["path"] for one in daemon["volumes"] if "hostPath" in one}
    mounts = {one["name"]: one for one in daemon["containers"][0]["volumeMounts"]}
    assert host == {"node": str(node.run_dir), "sys": "/sys"}
    assert mounts["sys"]["readOnly"] is True
    assert str(node.powercap_root).startswith(mounts["sys"]["mountPath"])
    for where, template in pod_templates(manifests).items():
        if where != "DaemonSet":
            assert [one["name"] for one in template["spec"]["containers"]] != ["node"]
            assert "shareProcessNamespace" not in template["spec"]
            mount = next(m for m in template["spec"]["containers"][0]["volumeMounts"] if m["name"] == "node")
            assert mount["mountPath"] == str(node.run_dir)
            assert template["spec"]["securityContext"]["runAsGroup"] == daemon["securityContext"]["runAsGroup"]


def test_meters_are_where_servers_may_be_and_nowhere_else(render: Render) -> None:
    where = {
        "nodeSelector": {"pool": "inference"},
        "tolerations": [{"key": "inference", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}}},
    }  # fmt: skip
    templates = pod_templates(render(metering={"mode": "daemonset"}, **where))
    for template in templates.values():
        assert {name: template["spec"][name] for name in where} == where
    plain = pod_templates(render(metering={"mode": "daemonset"}))["DaemonSet"]["spec"]
    assert not where.keys() & plain.keys()


def test_without_asking_for_it_nothing_of_the_host_is_in_any_pod(render: Render) -> None:
    for name, values in SETS.items():
        if values.get("metering"):
            continue
        for template in pod_templates(render(**values)).values():
            spec = template["spec"]
            assert not {"hostPID", "hostNetwork", "hostIPC"} & spec.keys(), name
            assert not [one for one in spec["volumes"] if "hostPath" in one]


def test_a_node_process_for_each_machine_goes_by_the_machines_name(render: Render) -> None:
    """Its pod's address changes with every restart, and what it measured by before would be forgotten."""
    for name, kind, field in (
        ("RAPL by a daemonset", "ServiceMonitor", "endpoints"),
        ("KubeRay and RAPL", "PodMonitor", "podMetricsEndpoints"),
    ):
        (endpoint,) = of_kind(render(**SETS[name]), kind)["spec"][field]
        assert endpoint["relabelings"] == [
            {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "instance"}
        ]
    (endpoint,) = of_kind(render(**SETS["KubeRay"]), "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert "relabelings" not in endpoint, "several pods may share a machine"


def test_prometheus_is_told_of_every_node_process(render: Render) -> None:
    service_monitor = of_kind(render(**SETS["edge"]), "ServiceMonitor")["spec"]
    service = of_kind(render(**SETS["edge"]), "Service", "demo-jouleserve-metrics")
    assert service_monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [one["port"] for one in service_monitor["endpoints"]] == [one["name"] for one in service["spec"]["ports"]]
    for name, pods in (("KubeRay", ("head", "servers")), ("KubeRay and RAPL", ("DaemonSet",))):
        manifests = render(**SETS[name])
        monitor = of_kind(manifests, "PodMonitor")["spec"]
        for pod in pods:
            template = pod_templates(manifests)[pod]
            assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items(), pod
            ports = {port["name"] for one in template["spec"]["containers"] for port in one.get("ports", [])}
            assert {one["port"] for one in monitor["podMetricsEndpoints"]} <= ports, pod
