"""The recording rules and alerts, by Prometheus' own tool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.node.metric_table import COUNTER, HISTOGRAM, METRICS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RULES = sorted((ROOT / "helm/jouleserve/rules").glob("*.yaml"))
CASES = HERE / "alerts_test.yaml"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (package prometheus) is missing")


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """All rules of a kind (`alert` or `record`) by their names."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule[kind]: rule for group in groups for rule in group["rules"] if kind in rule}


def promtool(*arguments: str, folder: Path = ROOT) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES))


@needs_promtool
def test_every_alert_fires_when_it_should_and_is_silent_when_it_should() -> None:
    promtool("test", "rules", CASES.name, folder=HERE)


def test_each_alert_has_a_firing_and_a_silent_case() -> None:
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test.get("alert_rule_test", [])]
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
