"""Every expression of the dashboards and rules, asked of a real Prometheus that scrapes a real server under load."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm.generate.boards import BOARDS
from helm.generate.panels import KNOWN, RELEASE, Board, Query, scoped, to_json
from loadtest.client import Question
from loadtest.http import HTTP
from loadtest.served import Served, free_port, serve
from loadtest.standing import load
from models.store import Store
from tests.helm.test_rules import RULES, exposed, rules
from tests.support.prometheus import wait_ready
from tests.support.tiny_family import publish_tiny_family

DASHBOARDS = Path(__file__).parents[2] / "helm/jouleserve/dashboards"
MOST_BYTES = 1_000_000
SCRAPE_S = 0.5
PATIENCE_S = 90.0
WATTS_OVER_S = 6
ONLY_WHEN_IT_HAPPENS = {"jouleserve_energy_missing_readings_total"}
"""Series that begin with what they count: its labels say what went wrong."""
DAYS_AGO = re.compile(r"offset|\[1d\]")
GRID = "utc_time,grams_per_kwh\n" + "".join(
    f"2025-01-{1 + hour // 24:02d}T{hour % 24:02d}:00:00Z,{500 if hour % 2 else 100}\n" for hour in range(96)
)

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_what_python_makes_of_it_and_small(name: str) -> None:
    content = (DASHBOARDS / f"{name}.json").read_text()
    assert content == to_json(BOARDS[name]), "run python -m helm.generate"
    assert len(content) < MOST_BYTES


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_dashboard_explains_each_panel_and_asks_for_what_is_exposed(board: Board) -> None:
    made = json.loads(to_json(board))
    for panel in made["panels"]:
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            letters = [target["refId"] for target in panel["targets"]]
            assert len(set(letters)) == len(letters)
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        if panel["type"] == "barchart":
            steps = [one["id"] for one in panel["transformations"]]
            assert steps == ["convertFieldType", "sortBy", "convertFieldType", "groupingToMatrix"]
            matrix = panel["transformations"][-1]["options"]
            assert panel["options"]["xField"] == f"{matrix['rowField']}\\{matrix['columnField']}"
            assert [target["format"] for target in panel["targets"]] == ["table"]
    asked = {name for query in board.queries() for name in re.findall(r"jouleserve_[a-z0-9_]+", query.expr)}
    assert asked <= exposed()


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_dashboard_shows_the_releases_that_were_chosen_and_no_other(board: Board) -> None:
    made = json.loads(to_json(board))
    chosen = {one["name"]: one for one in made["templating"]["list"]}
    for name in ("namespace", "job"):
        assert chosen[name]["includeAll"] is chosen[name]["multi"] is True
        assert chosen[name]["allValue"] == ".*", "a series without the label is shown, too"
        assert "jouleserve_build_info" in chosen[name]["query"]["query"]
    for panel in made["panels"]:
        for target in panel.get("targets", []):
            asked = re.findall(r"jouleserve_[a-z0-9_]+(\{[^}]*\})?", target["expr"])
            assert asked
            assert all(one.startswith(f"{{{RELEASE}") for one in asked), target["expr"]


def test_choosing_a_release_keeps_what_an_expression_asks_for_besides() -> None:
    assert scoped('a(jouleserve_x{b="c"}[5m]) / (jouleserve_y > 0)') == (
        f'a(jouleserve_x{{{RELEASE},b="c"}}[5m]) / (jouleserve_y{{{RELEASE}}} > 0)'
    )


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_no_panel_divides_by_what_may_be_nothing(board: Board) -> None:
    """While nobody asks, grams over requests would be infinitely many."""
    for query in board.queries():
        for divided in re.findall(r"/ (?:ignoring \(\w+\) group_left \(\) )?(.{20})", query.expr):
            assert divided.startswith(("(", "3.6e6", "scalar(")), query.expr


def test_the_intensity_of_the_answers_is_the_grids_where_cooling_costs_as_much_again() -> None:
    """Grams hold the cooling that joules do not; a g/kWh of the one over the other would look dirty for ever."""
    (query,) = [
        one for board in BOARDS.values() for one in board.queries() if one.legend == "answers" and "3600000" in one.expr
    ]
    assert query.expr.endswith(f"/ scalar(max(jouleserve_power_usage_effectiveness_ratio)) {KNOWN}")


def test_no_panel_shows_grams_of_hours_in_which_the_intensity_was_not_known_as_none() -> None:
    asked = [one.expr for board in BOARDS.values() for one in board.queries() if "rate(jouleserve_carbon_" in one.expr]
    assert len(asked) > 4
    assert [expr for expr in asked if KNOWN not in expr] == []


def test_a_panel_that_tells_what_runs_names_it() -> None:
    for board, title in (("serving", "Release"), ("carbon", "Point in force")):
        (panel,) = [one for one in json.loads(to_json(BOARDS[board]))["panels"] if one["title"] == title]
        assert panel["options"]["textMode"] == "name", "its value is 1"


def test_no_panel_charges_the_service_with_the_grams_of_other_programs() -> None:
    asked = [query.expr for board in BOARDS.values() for query in board.queries()]
    selectors = [one for expr in asked for one in re.findall(r"jouleserve_carbon_grams_total(\{[^}]*\})?", expr)]
    assert selectors
    assert set(selectors) <= {'{scope!="other"}', '{scope="attributed"}'}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server in edge mode whose budget is nearly spent, so that it escalates, falls back, caches and saves."""
    folder = tmp_path_factory.mktemp("d")
    store = Store(folder / "store")
    publish_tiny_family(store, threshold=0.55)
    (folder / "grid.csv").write_text(GRID)
    settings = {
        "model.store": store.root,
        "model.family": "tiny",
        "grid.provider": "replay",
        "grid.replay_path": folder / "grid.csv",
        "grid.replay_speed": 600,
        "shaping.policy": "budget",
        "shaping.budget_amount": 0.002,
        "shaping.poll_period_s": 0.5,
        "shaping.min_dwell_s": 0,
        "energy.source": "estimated",
        "energy.tick_s": 0.2,
        "batching.inline_ms": 0,
    }
    with serve(folder, settings, edge=True) as served:
        yield served


def questions() -> Iterator[Question]:
    """Texts of all classes, new ones as long as it lasts, and every third one asked twice."""
    for n in itertools.count():
        text = f"{('refund', 'my card please', 'w1')[n % 3]} w{n % 50} w{n // 50 % 50} w{n // 2500}"
        yield Question(text, ("strict", "standard", "eco")[n // 3 % 3])
        if n % 3 == 0:
            yield Question(text, "eco")


Ask = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ask(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Asks Prometheus under load, from when there is data on; with the load gone its rates would fall to nothing."""
    folder = tmp_path_factory.mktemp("p")
    port = free_port()
    target = served.metrics_url.removeprefix("http://")
    config = {
        "global": {"scrape_interval": f"{round(SCRAPE_S * 1000)}ms", "evaluation_interval": "1s"},
        "scrape_configs": [{"job_name": "jouleserve", "static_configs": [{"targets": [target]}]}],
        "rule_files": ["*.rules"],
    }
    for path in RULES:  # sooner than every half minute
        (folder / f"{path.stem}.rules").write_text(path.read_text().replace("interval: 30s", "interval: 1s"))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def asked(expr: str) -> list[dict[str, Any]]:
        answer = HTTP.get(f"{url}/api/v1/query", params={"query": expr}, timeout=30).json()
        assert answer["status"] == "success", f"{expr}: {answer.get('error')}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    try:
        wait_ready(process, url)
        with load(served, questions(), 6, pause_s=0.002):
            _wait_for_data(asked)
            yield asked
    finally:
        process.terminate()
        process.wait(20)


def _wait_for_data(ask: Ask) -> None:
    """Until everything that is asked below has had data, or for long enough: what is silent then is named there. Rates
    want two scrapes, and some series begin with a dirty hour or a new text in the cache."""
    silent = [shown(query) for board in BOARDS.values() for query in board.queries()]
    silent += [name for name, rule in rules("record").items() if not DAYS_AGO.search(rule["expr"])]
    deadline = time.monotonic() + PATIENCE_S
    while silent and time.monotonic() < deadline:
        time.sleep(SCRAPE_S)
        silent = [expr for expr in silent if not has_data(ask(expr))]


def shown(query: Query) -> str:
    """The expression as Grafana would send it before any release is chosen."""
    expr = scoped(query.expr).replace("$namespace", ".*").replace("$job", ".*")
    return expr.replace("$__rate_interval", "10s").replace("$__range", "10s")


def has_data(found: list[dict[str, Any]]) -> bool:
    return any(math.isfinite(float(one["value"][1])) for one in found)


@needs_prometheus
@pytest.mark.served
def test_every_expression_of_the_dashboards_returns_data(ask: Ask) -> None:
    silent = [query.expr for board in BOARDS.values() for query in board.queries() if not has_data(ask(shown(query)))]
    assert silent == []


@needs_prometheus
@pytest.mark.served
def test_bars_have_a_number_to_stand_at_and_joules_at_several_sizes_of_batches(ask: Ask) -> None:
    panels = [panel for board in BOARDS.values() for _, row in board.rows for panel in row if panel.bars]
    assert panels
    for panel in panels:
        (query,) = panel.queries
        found = ask(shown(query))
        assert panel.bars is not None
        assert len({one["metric"][panel.bars.across] for one in found}) > 1
        for one in found:
            assert set(one["metric"]) == {panel.bars.across, panel.bars.beside}
            assert int(one["metric"][panel.bars.across]) > 0
            assert float(one["value"][1]) > 0


@needs_prometheus
@pytest.mark.served
def test_every_recording_rule_records(ask: Ask) -> None:
    silent = [
        name for name, rule in rules("record").items() if not DAYS_AGO.search(rule["expr"]) and not has_data(ask(name))
    ]
    assert silent == []


@needs_prometheus
@pytest.mark.served
def test_every_alert_looks_at_what_is_there(ask: Ask) -> None:
    """Each expression is taken, and each series in it exists; whether it fires when it should is promtool's case."""
    for name, rule in rules("alert").items():
        ask(rule["expr"])
        for series in set(re.findall(r"jouleserve_[a-z0-9_]+", rule["expr"])):
            assert has_data(ask(series)) or series in ONLY_WHEN_IT_HAPPENS, f"{name}: {series}"
    firing = {one["metric"]["alertname"] for one in ask('ALERTS{alertstate="firing"}')}
    assert firing == set(), "a server that is well alarms nobody"


@needs_prometheus
@pytest.mark.served
def test_the_power_adds_up_to_the_meters(ask: Ask) -> None:
    """Averages over the same seconds, of counters that are settled a tick apart and that all were there before."""
    parts = "idle_joules_total", "attributed_joules_total", "unattributed_joules_total"
    names = [f"jouleserve_{name}" for name in (*parts, "energy_joules_total")]

    def number(expr: str) -> float:
        return float(ask(expr)[0]["value"][1])

    deadline = time.monotonic() + PATIENCE_S
    while min(number(f"min(count_over_time({name}[{WATTS_OVER_S}s]))") for name in names) < WATTS_OVER_S / SCRAPE_S - 1:
        assert time.monotonic() < deadline, "a counter is scraped too seldom"
        time.sleep(SCRAPE_S)
    *found, total = (number(f"sum(rate({name}[{WATTS_OVER_S}s]))") for name in names)
    assert sum(found) == pytest.approx(total, rel=0.25)
