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
from server.pod import PORTS, RUN_DIR
from tests.helm.conftest import STORE, Manifests, Render, containers, helm, kinds, of_kind, pod_templates
from tests.helm.value_sets import SETS, every_set
from tests.support.doc_commands import PAGES, Command, commands


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
