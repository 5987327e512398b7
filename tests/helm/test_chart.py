"""The chart as Helm lints, refuses and renders it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm.generate.__main__ import CHART, generated, main
from server.config import load
from server.node.settings import NodeSettings
from server.pod import PORTS, RUN_DIR
from tests.helm.conftest import STORE, Manifests, Render, helm, kinds, of_kind, pod_templates
from tests.helm.value_sets import SETS
from tests.support.doc_commands import PAGES, Command, commands

every_set = pytest.mark.parametrize("values", SETS.values(), ids=SETS)


@every_set
def test_helm_lint_finds_nothing(values: dict[str, Any]) -> None:
    report = helm.lint(CHART, {**STORE, **values}, strict=True)
    assert report["errors"] == []
    assert [one for one in report["messages"] if one["error"] != "icon is recommended"] == []


def test_what_is_generated_is_what_is_checked_in(tmp_path: Path) -> None:
    main([str(tmp_path)])
    for name in generated():
        assert (tmp_path / name).read_text() == (CHART / name).read_text(), f"{name}: run python -m helm.generate"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"mode": "Statefulset"}, "mode"),
        ({"imag": {"tag": "1"}}, "imag"),
        ({"image": {"digest": "sha256:12"}}, "digest"),
        ({"settings": {"server": {"prot": 8000}}}, "prot"),
        ({"settings": {"server": {"port": 0}}}, "port"),
        ({"settings": {"server": {"host": "0.0.0.0"}}}, "host"),
        ({"settings": {"grid": {"secret": "abc"}}}, "secret"),
        ({"settings": {"shaping": {"policy": "sometimes"}}}, "policy"),
        ({"ray": {"workers": {"min": 0}}}, "min"),
        ({"securityContext": None, "preStopSeconds": -1}, "preStopSeconds"),
        ({"metering": {"runDir": "run"}}, "runDir"),
        ({"podAnnotations": {"port": 9400}}, "podAnnotations"),
        ({"nodeSelector": {"energy": True}}, "energy"),
        ({"store": {"url": "s3://b", "size": "4GB"}}, "size"),
        ({"scratch": {"tmp": "much"}}, "tmp"),
        ({"keda": {"min": 0}}, "min"),
        ({"settings": {"jobs": {"path": "/jobs.sqlite"}}}, "path"),
    ],
)
def test_values_against_the_schema_are_refused_by_name(chart: Any, values: dict[str, Any], says: str) -> None:
    with pytest.raises(helm.HelmError, match=says):
        chart.validate_schema({**STORE, **values})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"store": {"claim": "a", "url": "s3://b"}}, "store: claim and url are both given; leave one out"),
        ({"store": {"claim": ""}}, "store: give the claim that holds the models"),
        ({"mode": "RayService", "keda": {"enabled": True}}, "KEDA scales Deployments"),
        ({"deployment": {"edge": True}, "metering": {"mode": "daemonset"}}, "edge mode meters in its own process"),
        ({"mode": "RayService", "ray": {"workers": {"min": 3, "max": 2}}}, "ray.workers.max: below ray.workers.min"),
        (
            {"metering": {"mode": "daemonset"}, "settings": {"shaping": {"policy": "budget", "budget_amount": 1}}},
            "use metering.mode pod",
        ),
        ({"mode": "RayService", "settings": {"server": {"replicas": 2}}}, "asks for 2 replicas and a pod holds one"),
        (
            {"mode": "RayService", "settings": {"server": {"max_replicas": 3}}},
            "asks for 3 replicas and a pod holds one",
        ),
        ({"mode": "RayService", "podDisruptionBudget": {"maxUnavailable": "50%"}}, "give a whole number"),
        ({"deployment": {"replicas": 2}, "jobs": {"claim": "jobs"}}, "jobs.claim: one pod owns the jobs"),
        ({"keda": {"enabled": True}}, "monitoring.monitor: KEDA goes by"),
        ({"keda": {"enabled": True, "min": 3, "max": 2}}, "keda.max: below keda.min"),
        (
            {"keda": {"enabled": True}, "monitoring": {"monitor": True}, "jobs": {"claim": "jobs"}},
            "one pod owns the jobs",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused_with_a_remedy(
    chart: Any, values: dict[str, Any], says: str
) -> None:
    with pytest.raises(helm.HelmError, match=says):
        chart.render({**STORE, **values}, name="demo")


INSTALLS = [one for page in PAGES for one in commands(page) if re.match(r"helm install \S+ helm/jouleserve", one.text)]


@pytest.mark.parametrize("command", INSTALLS, ids=str)
def test_what_the_docs_tell_to_install_is_what_the_chart_takes(render: Render, command: Command) -> None:
    values: dict[str, Any] = {}
    for word in shlex.split(command.text.replace("…", "0" * 64), comments=True):
        if "=" in word:
            key, _, value = word.partition("=")
            *sections, last = key.split(".")
            place = values
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = yaml.safe_load(value) if value in ("true", "false") else value
    assert values["image"]["repository"] == "REGISTRY/jouleserve"
    assert pod_templates(render(**values))


@every_set
def test_the_server_takes_the_settings_of_the_config_map(
    render: Render, tmp_path: Path, values: dict[str, Any]
) -> None:
    manifests = render(**values)
    file = tmp_path / "jouleserve.yaml"
    text = of_kind(manifests, "ConfigMap", "demo-jouleserve")["data"]["jouleserve.yaml"]
    for name in ("keys/keys", "admin/keys", "grid/secret", "redis/password"):  # the Secrets, as far as they are mounted
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("secret")
    file.write_text(text.replace("/etc/jouleserve", str(tmp_path)))
    settings = load(file).settings
    assert settings.server.run_dir == RUN_DIR
    assert settings.server.host == "0.0.0.0"
    assert settings.model.store == Path("/var/lib/jouleserve/store")
    for section, told in values.get("settings", {}).items():
        for name, value in told.items():
            assert getattr(getattr(settings, section), name) == value


@pytest.mark.parametrize("name", [name for name in SETS if name.startswith("KubeRay")])
def test_ray_is_handed_the_very_settings_of_the_config_map(render: Render, name: str) -> None:
    manifests = render(**SETS[name])
    serve = yaml.safe_load(of_kind(manifests, "RayService")["spec"]["serveConfigV2"])
    file = yaml.safe_load(of_kind(manifests, "ConfigMap", "demo-jouleserve")["data"]["jouleserve.yaml"])
    (application,) = serve["applications"]
    assert application["args"]["settings"] == file
    assert application["import_path"] == "server.cluster:app"
    assert serve["http_options"] == {"host": "0.0.0.0", "port": 8000}


@pytest.mark.parametrize("name", [name for name in SETS if name.startswith("KubeRay")])
def test_serve_takes_the_config_and_builds_the_application(render: Render, name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    from server.cluster import app

    config = ServeDeploySchema.model_validate(
        yaml.safe_load(of_kind(render(**SETS[name]), "RayService")["spec"]["serveConfigV2"])
    )
    (application,) = config.applications
    settings = dict(application.args["settings"])
    if "api_keys_file" in settings["server"]:
        settings["server"] = {**settings["server"], "api_keys_file": None}  # the Secret is not here
    assert app({"settings": settings}) is not None


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


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


def node_process(template: dict[str, Any]) -> NodeSettings:
    """The node process's settings by its own parser, which ends the test if it refuses them."""
    container = next(one for one in template["spec"]["containers"] if one["name"] == "node")
    assert container["command"] == ["python", "-m", "server.node"]
    return NodeSettings.from_arguments(container["args"])


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


def rules(manifests: Manifests) -> list[tuple[Any, set[int]]]:
    spec = of_kind(manifests, "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    return [(rule["from"], {port["port"] for port in rule.get("ports", [])}) for rule in spec["ingress"]]


def test_metrics_and_ray_are_closed_to_whoever_may_ask(render: Render) -> None:
    clients = [{"podSelector": {"matchLabels": {"app": "shop"}}}]
    found = rules(render(mode="RayService", networkPolicy={"clients": clients}))
    own = [{"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "jouleserve",
                                            "app.kubernetes.io/instance": "demo"}}}]  # fmt: skip
    assert (clients, {8000}) in found
    assert [sources for sources, ports in found if ports == {9400}] == [
        [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    ]
    assert [sources for sources, ports in found if not ports] == [own], "all ports are open to own pods alone"
    assert rules(render(networkPolicy={"metrics": []})) == [([{"podSelector": {}}], {8000})]


def test_selectors_find_the_pods_that_they_mean(render: Render) -> None:
    for values in SETS.values():
        manifests = render(**values)
        labels = {name: template["metadata"]["labels"] for name, template in pod_templates(manifests).items()}
        for one in manifests:
            spec = one.get("spec", {})
            selector = spec.get("selector") or spec.get("podSelector") or {}
            wanted = selector.get("matchLabels", selector if one["kind"] == "Service" else {})
            if one["kind"] == "ServiceMonitor":
                services = [service["metadata"]["labels"] for service in manifests if service["kind"] == "Service"]
                assert sum(wanted.items() <= found.items() for found in services) == 1
            elif wanted:
                hit = {name for name, found in labels.items() if wanted.items() <= found.items()}
                assert hit, f"{one['kind']} {one['metadata']['name']} selects nothing"
                if one["kind"] in ("Deployment", "DaemonSet"):
                    assert hit == {one["kind"]}


@every_set
def test_no_pod_may_ask_anything_of_kubernetes(render: Render, values: dict[str, Any]) -> None:
    """Ray's autoscaler alone has a right, to its pods, and KubeRay makes the account for it."""
    manifests = render(**values)
    assert not {kind for kind in kinds(manifests) if "Role" in kind}
    assert of_kind(manifests, "ServiceAccount")["automountServiceAccountToken"] is False
    workers = values.get("ray", {}).get("workers", {})
    for name, template in pod_templates(manifests).items():
        scales = name == "head" and workers.get("max", 1) > workers.get("min", 1)
        assert template["spec"].get("automountServiceAccountToken") is (None if scales else False), name


def test_one_pod_at_a_time_is_taken_away_and_no_two_share_a_machine(render: Render) -> None:
    for mode, pods in (("Deployment", "Deployment"), ("RayService", "servers")):
        manifests = render(mode=mode)
        template = pod_templates(manifests)[pods]
        budget = of_kind(manifests, "PodDisruptionBudget")["spec"]
        (spread,) = template["spec"]["topologySpreadConstraints"]
        assert (spread["topologyKey"], spread["maxSkew"]) == ("kubernetes.io/hostname", 1)
        assert spread["nodeTaintsPolicy"] == "Honor", "a tainted machine would be waited for"
        for selector in (budget["selector"], spread["labelSelector"]):
            assert selector["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_pods_of_a_ray_cluster_can_be_evicted(render: Render) -> None:
    """Kubernetes asks a pod's owner for its scale where a budget says `maxUnavailable`; a RayCluster has none, and then
    no pod may go."""
    for least, spared in ((1, 0), (3, 2)):
        manifests = render(mode="RayService", ray={"workers": {"min": least, "max": 4}})
        budget = of_kind(manifests, "PodDisruptionBudget")["spec"]
        assert "maxUnavailable" not in budget
        assert budget["minAvailable"] == spared
    assert of_kind(render(), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


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


def test_grpc_reaches_the_replicas_in_both_modes(render: Render) -> None:
    settings = {"server": {"grpc_port": 9001}}
    for mode, pods, name in (("Deployment", "Deployment", ""), ("RayService", "servers", "-grpc")):
        manifests = render(mode=mode, settings=settings)
        template = pod_templates(manifests)[pods]
        service = of_kind(manifests, "Service", f"demo-jouleserve{name}")["spec"]
        (port,) = [one for one in service["ports"] if one["name"] == "grpc"]
        assert (port["port"], port["targetPort"]) == (9001, "grpc")
        assert service["selector"].items() <= template["metadata"]["labels"].items()
        assert {"name": "grpc", "containerPort": 9001} in template["spec"]["containers"][0]["ports"]
        assert any(9001 in ports for _, ports in rules(manifests))
    head = pod_templates(manifests)["head"]
    assert not service["selector"].items() <= head["metadata"]["labels"].items()
    assert "Service" not in kinds(render(mode="RayService"))


def test_ray_gets_the_lean_environment_and_haproxys_wrapper(render: Render) -> None:
    for template in pod_templates(render(mode="RayService")).values():
        environment = {one["name"]: one["value"] for one in template["spec"]["containers"][0]["env"]}
        assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert environment["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] == str(PORTS.replicas.start)
        assert template["spec"]["initContainers"][1]["command"] == ["python", "-m", "server.pod"]


def test_ray_scales_replicas_and_pods_by_requests_in_flight(render: Render) -> None:
    manifests = render(**SETS["KubeRay that scales, with GPUs"])
    cluster = of_kind(manifests, "RayService")["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert (workers["minReplicas"], workers["maxReplicas"]) == (2, 6)
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1
    assert workers["template"]["spec"]["runtimeClassName"] == "nvidia"
    fixed = of_kind(render(mode="RayService"), "RayService")["spec"]["rayClusterConfig"]
    assert "enableInTreeAutoscaling" not in fixed


def test_keda_scales_the_deployment_and_nothing_else_does(render: Render) -> None:
    manifests = render(**SETS["KEDA"])
    scaled = of_kind(manifests, "ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] == of_kind(manifests, "Deployment")["metadata"]["name"]
    assert "jouleserve_requests_in_flight" in scaled["triggers"][0]["metadata"]["query"]
    assert "replicas" not in of_kind(manifests, "Deployment")["spec"]


def test_what_is_optional_is_left_out_where_it_is_not_wanted(render: Render) -> None:
    bare = render(**SETS["nothing optional"])
    assert kinds(bare) == {"ConfigMap", "ServiceAccount", "Deployment", "Service"}
    assert "topologySpreadConstraints" not in of_kind(bare, "Deployment")["spec"]["template"]["spec"]
    watched = render(**SETS["edge"])
    assert {"ServiceMonitor", "PrometheusRule"} <= kinds(watched)
    assert "PodMonitor" in kinds(render(**SETS["KubeRay"]))


def test_a_digest_goes_before_a_tag(render: Render) -> None:
    digest = "sha256:" + "0" * 64
    for template in pod_templates(render(image={"tag": "1", "digest": digest})).values():
        assert {one["image"] for one in containers(template)} == {f"ghcr.io/example/jouleserve@{digest}"}
