"""The recording rules and alerts, by Prometheus' own tool."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.node.metric_table import COUNTER, HISTOGRAM, METRICS
from tests.helm.conftest import Render, of_kind
from tests.helm.value_sets import EVERYTHING_WATCHED

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RULES = sorted((ROOT / "helm/jouleserve/rules").glob("*.yaml"))
CASES = sorted(HERE.glob("alerts*_test.yaml"))

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (package prometheus) is missing")


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """All rules of a kind (`alert` or `record`) by their names."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule[kind]: rule for group in groups for rule in group["rules"] if kind in rule}


def promtool(*arguments: str, folder: Path = ROOT) -> None:
    """Raises AssertionError with what it says if it is not content. Memory is cheaper here than collecting it often."""
    environment = {**os.environ, "GOGC": "400"}
    done = subprocess.run(
        ["promtool", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES))


@needs_promtool
def test_every_alert_fires_when_it_should_and_is_silent_when_it_should() -> None:
    with ThreadPoolExecutor() as pool:  # it takes one file after the other, on one core
        list(pool.map(lambda path: promtool("test", "rules", path.name, folder=HERE), CASES))


def test_each_alert_has_a_firing_and_a_silent_case() -> None:
    tests = [test for path in CASES for test in yaml.safe_load(path.read_text())["tests"]]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    firing = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert firing == silent == set(rules("alert"))


def test_the_runbook_has_an_entry_for_each_alert_and_no_other() -> None:
    runbook = (ROOT / "docs/runbook.md").read_text()
    entries = re.findall(r"^## (JouleServe\w+)$", runbook, re.MULTILINE)
    assert entries == list(rules("alert")), "in the order of the rules"
    for name, text in zip(entries, re.split(r"^## JouleServe\w+$", runbook, flags=re.MULTILINE)[1:], strict=True):
        for part in ("**Means**", "**Look**", "**Do**"):
            assert part in text, f"{name}: {part}"


def test_each_alert_leads_to_its_entry_and_says_how_bad_it_is() -> None:
    for name, rule in rules("alert").items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


def exposed() -> set[str]:
    """Every series name that the node process may expose."""
    names: set[str] = set()
    for name, (kind, _, _) in METRICS.items():
        ends = ("_total",) if kind == COUNTER else ("_bucket", "_sum", "_count") if kind == HISTOGRAM else ("",)
        names |= {f"{name}{end}" for end in ends}
    return names


def test_the_rules_ask_for_metrics_that_exist() -> None:
    known = exposed() | set(rules("record"))
    for name, rule in {**rules("alert"), **rules("record")}.items():
        asked = set(re.findall(r"jouleserve[_:][a-z0-9_:]+", rule["expr"]))
        assert asked, name
        assert asked <= known, f"{name}: {asked - known}"


RELEASES: dict[str, tuple[dict[str, Any], str]] = {
    "Deployment": ({}, "demo-jouleserve-metrics"),
    "RayService": ({"mode": "RayService"}, "prod/demo-jouleserve"),
}
"""Values, and the job that the Prometheus operator makes of the monitor: the Service's name, or the PodMonitor's."""


@needs_promtool
@pytest.mark.parametrize("mode", RELEASES)
def test_a_releases_rules_look_at_its_own_series_alone(render: Render, tmp_path: Path, mode: str) -> None:
    values, job = RELEASES[mode]
    spec = of_kind(render(**values, monitoring=EVERYTHING_WATCHED), "PrometheusRule")["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", folder=tmp_path)
    own = f'{{namespace="prod",job="{job}"'
    text = " ".join(rule["expr"] for group in spec["groups"] for rule in group["rules"])
    asked = re.findall(r"(?:jouleserve[_:][a-z0-9_:]+|\bup\b)(\{[^}]*\})?", text)
    assert len(asked) > len(spec["groups"])
    assert all(selector.startswith(own) for selector in asked), asked


def test_rules_that_no_monitor_goes_with_take_every_series(render: Render) -> None:
    spec = of_kind(render(monitoring={"rules": True}), "PrometheusRule")["spec"]
    found = {rule.get("alert") or rule["record"]: rule["expr"] for group in spec["groups"] for rule in group["rules"]}
    assert found == {name: rule["expr"] for name, rule in {**rules("alert"), **rules("record")}.items()}


def test_alerts_lead_to_where_the_runbook_is_read(render: Render) -> None:
    url = "https://wiki.example/jouleserve"
    spec = of_kind(render(monitoring={"rules": True, "runbookUrl": url}), "PrometheusRule")["spec"]
    leads = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in spec["groups"][0]["rules"]}
    assert leads == {name: f"{url}#{name.lower()}" for name in rules("alert")}
