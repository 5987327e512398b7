"""What the chart's pods may do, where they write, and how they begin and end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from server.pod import RUN_DIR
from tests.helm.conftest import Render, containers, node_process, of_kind, pod_templates
from tests.helm.value_sets import SETS, every_set


@every_set
def test_no_container_may_write_outside_its_folders_or_gain_a_right(render: Render, values: dict[str, Any]) -> None:
    for name, template in pod_templates(render(**values)).items():
        pod = template["spec"]["securityContext"]
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(template):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in context
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]
            if name != "DaemonSet":  # the counters are root's
                assert pod["runAsUser"] > 0
                assert pod["runAsNonRoot"] is context["runAsNonRoot"] is True


@every_set
def test_ray_and_the_server_can_write_where_they_must(render: Render, values: dict[str, Any]) -> None:
    for name, template in pod_templates(render(**values)).items():
        if name == "DaemonSet":
            continue
        volumes = {one["name"]: one for one in template["spec"]["volumes"]}
        main_container = template["spec"]["containers"][0]
        mounts = {one["mountPath"]: one for one in main_container["volumeMounts"]}
        for path in ("/tmp", "/dev/shm", str(RUN_DIR)):
            assert "emptyDir" in volumes[mounts[path]["name"]]
            assert not mounts[path].get("readOnly")
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert mounts["/var/lib/jouleserve/store"]["readOnly"] is True
        environment = {one["name"]: one.get("value") for one in main_container["env"]}
        assert environment["HOME"] == environment["TMPDIR"] == "/tmp"
        used = {one["name"] for container in containers(template) for one in container["volumeMounts"]}
        assert used == set(volumes)


@every_set
def test_digests_are_verified_before_the_server_starts(render: Render, values: dict[str, Any]) -> None:
    for name, template in pod_templates(render(**values)).items():
        if name != "DaemonSet":
            first = template["spec"]["initContainers"][0]
            wanted = ["fetch", "s3://bucket/store"] if "store" in values else ["verify"]
            assert first["args"] == ["models", *wanted, "--config", "/etc/jouleserve/config/jouleserve.yaml"]


def test_another_version_at_a_url_is_fetched_by_new_pods(render: Render) -> None:
    """Other settings reach the replicas of a Ray cluster in place; what is fetched, only an init container brings."""

    def pods(mode: str, store: dict[str, str], **settings: Any) -> dict[str, Any]:
        return pod_templates(render(mode=mode, store=store, settings=settings))

    url, claim = {"url": "s3://bucket/store"}, {"claim": "models"}
    for mode in ("Deployment", "RayService"):
        assert pods(mode, url) != pods(mode, url, model={"version": "0002-0123456789ab"})
    same = pods("RayService", claim, batching={"max_rows": 8})
    assert pods("RayService", claim) == same == pods("RayService", claim, model={"version": "0002-0123456789ab"})
    assert pods("RayService", url) == pods("RayService", url, batching={"max_rows": 8})


@every_set
def test_whoever_reads_the_settings_file_has_the_files_that_it_names(render: Render, values: dict[str, Any]) -> None:
    manifests = render(**values)
    text = of_kind(manifests, "ConfigMap", "demo-jouleserve")["data"]["jouleserve.yaml"]
    named = {word for word in text.split() if word.startswith("/etc/jouleserve/")}
    for name, template in pod_templates(manifests).items():
        if name != "DaemonSet":
            for container in (template["spec"]["initContainers"][0], template["spec"]["containers"][0]):
                folders = {one["mountPath"] for one in container["volumeMounts"]}
                assert {str(Path(file).parent) for file in named} <= folders


@every_set
def test_a_pod_lives_until_what_it_accepted_is_answered(render: Render, values: dict[str, Any]) -> None:
    drain_s = values.get("settings", {}).get("server", {}).get("drain_timeout_s", 20)
    for name, template in pod_templates(render(**values)).items():
        if name == "DaemonSet":
            continue
        spec = template["spec"]
        hook = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        if name == "Deployment":
            assert spec["terminationGracePeriodSeconds"] >= 5 + drain_s + 10
            assert "sleep(5)" in hook[-1]
        else:
            within_s = int(hook[-1].removeprefix("--within="))
            assert hook[:3] == ["python", "-m", "server.leave"]
            assert drain_s < within_s <= spec["terminationGracePeriodSeconds"] - 10
            for node in (one for one in spec["containers"] if one["name"] == "node"):
                outlasts = node["lifecycle"]["preStop"]["exec"]["command"]
                assert outlasts == ["python", "-m", "server.node.outlast", f"--within={within_s}", "--port=9400"]


def test_a_deployment_is_ready_when_the_server_says_so_and_restarted_when_it_is_dead(render: Render) -> None:
    (container,) = pod_templates(render())["Deployment"]["spec"]["containers"]
    probed = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probed == {"startupProbe": "/health", "readinessProbe": "/health", "livenessProbe": "/live"}
    assert {one["name"]: one["containerPort"] for one in container["ports"]} == {"http": 8000, "metrics": 9400}


@every_set
def test_a_stuck_meter_is_restarted_and_takes_no_pod_out_of_its_service(render: Render, values: dict[str, Any]) -> None:
    for template in pod_templates(render(**values)).values():
        for container in template["spec"]["containers"]:
            if container["name"] == "node":
                assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
                assert "readinessProbe" not in container


@every_set
def test_no_pod_can_fill_the_disk_of_its_machine(render: Render, values: dict[str, Any]) -> None:
    for name, template in pod_templates(render(**values)).items():
        folders = [one["emptyDir"] for one in template["spec"]["volumes"] if "emptyDir" in one]
        assert folders, name
        assert all(folder.get("sizeLimit") for folder in folders), name


def test_files_that_settings_name_are_in_every_container_that_reads_settings(render: Render) -> None:
    mine = SETS["files of one's own, and jobs that outlive pods"]
    file = "/etc/jouleserve/files/curve.json"
    for more in ({}, {"mode": "RayService"}, {"metering": {"mode": "daemonset"}}):
        files = {name: mine[name] for name in ("extraVolumes", "extraVolumeMounts")}
        templates = pod_templates(render(settings={"energy": {"calibration": file}}, **files, **more))
        for name, template in templates.items():
            assert {"name": "files", "configMap": {"name": "files"}} in template["spec"]["volumes"], name
            for container in containers(template):
                if container["name"] not in ("proxy", "folder"):
                    mounts = {one["mountPath"] for one in container["volumeMounts"]}
                    assert "/etc/jouleserve/files" in mounts, (name, container["name"])
                if container["name"] == "node":
                    assert node_process(template).calibration_path == Path(file)


def test_jobs_are_kept_by_the_one_pod_that_owns_them(render: Render) -> None:
    for name, owner in (
        ("files of one's own, and jobs that outlive pods", "Deployment"),
        ("KubeRay and jobs that outlive pods", "head"),
    ):
        manifests = render(**SETS[name])
        settings = yaml.safe_load(of_kind(manifests, "ConfigMap", "demo-jouleserve")["data"]["jouleserve.yaml"])
        file = Path(settings["jobs"]["path"])
        for pod, template in pod_templates(manifests).items():
            mounts = {one["mountPath"]: one["name"] for one in template["spec"]["containers"][0]["volumeMounts"]}
            assert mounts.get(str(file.parent)) == ("jobs" if pod == owner else None), pod
        if owner == "Deployment":
            assert of_kind(manifests, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
        else:
            assert of_kind(manifests, "RayService")["spec"]["upgradeStrategy"] == {"type": "None"}
    assert of_kind(render(), "Deployment")["spec"]["strategy"]["type"] == "RollingUpdate"
