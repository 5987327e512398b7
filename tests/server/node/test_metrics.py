from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from energy.attribution import REASONS, DomainEnergy, Window, attribute
from energy.carbon import MECHANISMS
from energy.domains import Domain
from energy.ledger import Account
from energy.meter import DISBELIEVED
from server.node.grid_state import GridState
from server.node.jobs_state import JobsState, read_jobs_state
from server.node.metric_table import METRICS, to_markdown
from server.node.metrics import Books, render
from server.node.model_file import CompileCost
from server.node.proctree import ServingTree
from server.node.startup import StartUp
from server.node.state import NodeState
from server.node.totals import increase
from server.node.wire import AVOIDED, OUTCOMES, decode_snapshot
from server.usage import Usage

ROOT = Path(__file__).parents[3]
CPU = Domain("package", "package-0", "rapl")
CORE = Domain("core", "package-0", "rapl", overlaps=True)
OWNER = Account("intents", "full", "full", "standard", "ok")
TRACE = "0af7651916cd43dd8448eb211c80319c"
GRID = GridState(
    *(250.0, 60.0, 0.0, "GB", "replay", "live", "lite", "budget", "budget-tight:40%", 4),
    dial_level=0.5,
    budget_spent_ratio=0.4,
    budget_elapsed_ratio=0.3,
)


def books(grid: GridState | None = GRID) -> Books:
    usage = Usage("intents")
    usage.request("full", "full", "standard", "ok", 5_000_000, total_ns=4_000_000, queue_ns=100, tokenize_ns=200)
    usage.request("full", "cascade", "standard", "ok", 5_000_000)
    usage.traced(TRACE, "full", "standard", 4_000_000, 1_200_000)
    usage.request("", "", "eco", "shed", 1000)
    usage.batch("full", 3, 30, 40, infer_ns=3_000_000, cpu_ns=2_400_000)
    state = NodeState()
    snapshot = decode_snapshot(usage.snapshot())
    state.totals.add(increase(snapshot, None))
    state.ledger.meter({CPU: 3_100_000, CORE: 1_000_000})
    window = Window([DomainEnergy(CPU, 2_000_000, 500_000)], 30, 20, {OWNER: 10}, 5)
    state.ledger.settle(attribute(window), 250.0, pue=1.2, elapsed_ns=10**9)
    state.ledger.settle(attribute(Window([DomainEnergy(CPU, 100_000, 100_000)], 0, 0, {})), 250.0)
    state.ledger.observe(OWNER, 0.003, 2)
    state.ledger.avoid("cache", 3_600_000, 250.0)
    return Books(
        ledger=state.ledger,
        totals=state.totals,
        pending_uj=1_000_000,
        uncertainty={"rapl": 0.05},
        dynamic_uncertainty={"rapl": 0.05},
        missing_ticks={(CPU, "gap"): 2},
        missing_now={CPU: True, CORE: False},
        unmetered_uj={(CPU, "gap"): 40_000_000},
        joules_per_cpu_second=2.5,
        meter_cpu_seconds=1.25,
        gauges={"queue_depth": 3.0, "cache_bytes": 100.0},
        replicas=1,
        processes=9,
        grid=grid,
        grams_per_kwh=250.0 if grid else None,
        grid_age_s=61.0 if grid else None,
        pue=1.2,
        startup=started(),
        write_failures=1,
        free_bytes=10**9,
        compiled=(CompileCost("intents", "lite", 1234.0, 500.0, "rapl", 0.05),),
        exemplars=snapshot.exemplars,
        jobs=JobsState(3, 1, 7, 1, 1, 500, 40.0, 0.002, 0.003),
    )


def started() -> StartUp:
    startup = StartUp(root_age_s=0.0)
    startup.look(1, ServingTree((os.getpid(),)), 2.5)
    return startup


def samples(found: Books) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = render(found, "text/plain", "1.2.3")[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def test_every_metric_of_the_table_is_exposed_with_its_labels_and_no_other() -> None:
    text = render(books(), "text/plain", "1.2.3")[0].decode()
    found = {family.name: family for family in parse_text(text)}
    assert set(found) == set(METRICS)
    for name, (kind, labels, _) in METRICS.items():
        assert found[name].type == kind
        for sample in found[name].samples:
            assert set(sample.labels) - {"le"} == set(labels), name


def test_the_figures_are_joules_seconds_and_ratios() -> None:
    found = samples(books())
    source = (("device", "package-0"), ("domain", "package"), ("source", "rapl"))
    assert found["jouleserve_energy_joules_total", source] == 3.1
    assert found["jouleserve_idle_joules_total", source] == 0.6
    assert found["jouleserve_energy_domain_missing", source] == 1
    assert found["jouleserve_unmetered_joules_total", (*source[:2], ("reason", "gap"), source[2])] == 40.0
    assert found["jouleserve_unmetered_joules_total", (*source[:2], ("reason", "jump"), source[2])] == 0.0
    owner = (
        ("class", "standard"),
        ("model", "intents"),
        ("outcome", "ok"),
        ("source", "rapl"),
        ("variant", "full"),
    )
    assert found["jouleserve_attributed_joules_total", owner] == 0.5
    # 0.5 J of its own, all of the window's idling (0.5 J) and overhead (0.25 J), times PUE; what came after waits.
    assert found["jouleserve_loaded_joules_total", owner] == pytest.approx(1.2 * 1.25)
    assert found["jouleserve_unloaded_joules", (("source", "rapl"),)] == 0.1
    assert found["jouleserve_unattributed_joules_total", (("reason", "overhead"),)] == 0.25
    assert found["jouleserve_unattributed_joules_total", (("reason", "late_record"),)] == 0.25
    assert found["jouleserve_unattributed_joules_total", (("reason", "other_processes"),)] == 0.5
    assert found["jouleserve_energy_conservation_error_ratio", ()] == 0.0
    owner = ("class", "standard"), ("model", "intents"), ("variant", "full")
    assert found["jouleserve_request_energy_joules_sum", owner] == 0.5
    for top, count in (("0.005", 2), ("0.002", 0)):
        labels = tuple(sorted((*owner, ("le", top))))
        assert found["jouleserve_request_energy_joules_bucket", labels] == count
    upto4 = (("rows", "4"), ("variant", "full"))
    assert found["jouleserve_batch_texts_total", upto4] == 3
    assert found["jouleserve_batch_cpu_seconds_total", upto4] == 0.0024
    assert found["jouleserve_request_duration_seconds_sum", (("phase", "infer"),)] == 0.003
    assert found["jouleserve_request_duration_seconds_bucket", (("le", "0.005"), ("phase", "total"))] == 1
    assert found["jouleserve_padding_share_ratio", ()] == 0.25
    assert found["jouleserve_shed_requests_total", (("class", "eco"),)] == 1
    scope = (("model", "intents"), ("scope", "attributed"), ("variant", "full"))
    assert found["jouleserve_carbon_grams_total", scope] == pytest.approx(0.5 / 3.6e6 * 250)
    assert found["jouleserve_carbon_saved_grams_total", (("mechanism", "efficiency"),)] == pytest.approx(250e-6)
    compiled = (("model", "intents"), ("variant", "lite"))
    assert found["jouleserve_compile_joules", compiled] == 1234
    assert found["jouleserve_compile_cpu_seconds", compiled] == 500


def test_what_is_unknown_is_absent_and_not_zero() -> None:
    names = {name for name, _ in samples(books(grid=None))}
    assert not {name for name in names if name.startswith(("jouleserve_grid", "jouleserve_dial"))}
    bare = {name for name, _ in samples(Books(NodeState().ledger, NodeState().totals))}
    assert "jouleserve_energy_joules_total" not in bare
    assert "jouleserve_dynamic_joules_per_cpu_second" not in bare
    assert "jouleserve_padding_share_ratio" not in bare


def test_what_nobody_counts_is_not_shown_as_zero() -> None:
    names = {name for name, _ in samples(books())}
    assert not {name for name in names if "evictions" in name}


def test_whoever_answered_has_its_failures_at_zero_from_the_beginning() -> None:
    found = samples(books())
    for outcome in ("error", "cancelled", "shed"):
        labels = (("class", "standard"), ("model", "intents"), ("outcome", outcome))
        request = tuple(sorted((*labels, ("point", "cascade"), ("variant", "full"))))
        assert found["jouleserve_requests_total", request] == 0
        owed = tuple(sorted((*labels, ("source", "rapl"), ("variant", "full"))))
        assert found["jouleserve_attributed_joules_total", owed] == 0
    assert found["jouleserve_shed_requests_total", (("class", "strict"),)] == 0


def test_an_error_of_the_last_minutes_is_not_drowned_by_the_joules_of_a_year() -> None:
    worse = books()
    worse.recent_error_ratio = 0.25
    assert samples(worse)["jouleserve_energy_conservation_error_ratio", ()] == 0.25


def test_openmetrics_points_to_the_traces_of_requests() -> None:
    text = render(books(), "application/openmetrics-text; version=1.0.0", "1.2.3")[0].decode()
    found = {
        (sample.name, sample.labels["le"]): sample.exemplar
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.exemplar
    }
    assert set(found) == {
        ("jouleserve_request_duration_seconds_bucket", "0.005"),
        ("jouleserve_request_energy_joules_bucket", "0.005"),
    }
    energy = found["jouleserve_request_energy_joules_bucket", "0.005"]
    assert (energy.labels, energy.value) == ({"trace_id": TRACE}, pytest.approx(0.003))


def test_the_document_is_the_table_of_the_code() -> None:
    remedy = "python -m server.node.metric_table > docs/metrics.md"
    assert (ROOT / "docs" / "metrics.md").read_text() == to_markdown(), remedy


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("jouleserve_unattributed_joules", REASONS),
        ("jouleserve_energy_avoided_joules", AVOIDED),
        ("jouleserve_energy_missing_readings", (*DISBELIEVED, "unreadable", "frozen")),
        ("jouleserve_requests", OUTCOMES),
        ("jouleserve_carbon_saved_grams", MECHANISMS),
    ],
)
def test_the_document_says_what_each_value_of_a_label_stands_for(name: str, values: tuple[str, ...]) -> None:
    assert [value for value in values if value not in METRICS[name][2]] == []


def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    data, content_type = render(books(), "application/openmetrics-text; version=1.0.0", "1.2.3")
    assert content_type.startswith("application/openmetrics-text")
    assert {family.name for family in parse_openmetrics(data.decode())} == set(METRICS)


def test_who_asks_for_what_cannot_be_understood_is_given_text() -> None:
    data, content_type = render(books(), "application/openmetrics-text; version=abc", "1.2.3")
    assert content_type.startswith("text/plain")
    assert {family.name for family in parse_text(data.decode())} == set(METRICS)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH (Debian package prometheus)")
def test_promtool_finds_nothing_to_say() -> None:
    data = render(books(), "text/plain", "1.2.3")[0]
    found = subprocess.run(["promtool", "check", "metrics"], input=data, capture_output=True, timeout=30)
    assert (found.returncode, found.stdout + found.stderr) == (0, b"")


def test_jobs_are_counted_by_how_they_ended_and_their_grams_by_when() -> None:
    text = render(books(), "", "1.2.3")[0].decode()
    assert 'jouleserve_jobs{state="waiting"} 3.0' in text
    assert 'jouleserve_jobs_ended_total{outcome="in_time"} 6.0' in text
    assert 'jouleserve_jobs_ended_total{outcome="late"} 1.0' in text
    assert 'jouleserve_jobs_carbon_grams_total{when="at_once"} 0.003' in text


def test_a_state_of_the_jobs_that_cannot_be_understood_is_absent(tmp_path: Path) -> None:
    assert read_jobs_state(tmp_path) is None
    (tmp_path / "jobs.json").write_text('{"waiting": "x"}')
    assert read_jobs_state(tmp_path) is None
