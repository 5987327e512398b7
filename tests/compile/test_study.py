"""The study: which cells there are, how a run keeps and finds them, what its tables say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.errors import StorageError
from compile.recipe import parse_recipe
from compile.runner import Silent
from compile.study import run
from compile.study.plan import FAMILIES, INT8, SETS, STEPS, Cell, cells, recipe_of
from compile.study.published import BERT
from compile.study.run import read_results, run_cells
from compile.study.tables import at_cost, beside_published, beside_torchscript, every_variant, units_against_layers
from compile.study.targets import against_targets

FULL_SIZE, FULL_TIME = 100, 4.0


def shown(accuracy: float, time: float, size: int = FULL_SIZE) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "accuracy_lower": accuracy - 0.01,
        "relative_accuracy": accuracy / 0.9,
        "size_bytes": size,
        "cpu_seconds_per_1k": time,
        "joules_per_1k": 3 * time,
        "compile_cpu_seconds": 12.0,
        "test_rows": 1000,
        "matthews": {"value": 0.5},
    }


def a_cell(**more: Any) -> dict[str, Any]:
    variants = {
        "fp32": shown(0.9, FULL_TIME),
        "full": shown(0.9, 2.0, 25),
        "cut-4": shown(0.88, 3.0, 70),
        "lite-4": shown(0.88, 1.5, 20),
        "cut-2": shown(0.80, 1.6, 40),
        "lite-2": shown(0.80, 0.8, 15),
        "cut-2-units": shown(0.78, 1.0, 30),
        "lite-2-units": shown(0.78, 0.5, 10),
        "half-units": shown(0.86, 1.15, 15),
    }
    points = [
        {"name": "full", "relative_accuracy": 1.0, "cpu_seconds_per_1k": 2.0},
        {"name": "lite-4", "relative_accuracy": 0.98, "cpu_seconds_per_1k": 1.5},
        {"name": "lite-2", "relative_accuracy": 0.89, "cpu_seconds_per_1k": 0.8},
    ]
    return {"model": "gpt2", "set": "sst2", "size": "small", "variants": variants, "points": points, **more}


@pytest.mark.parametrize("cell", [*cells(), *cells("quick"), *cells("whole")], ids=lambda cell: cell.name)
def test_every_cell_s_recipe_is_sound_and_has_the_published_steps(cell: Cell) -> None:
    recipe = parse_recipe(recipe_of(cell, "text"), None, {})
    names = [variant.name for variant in recipe.variants]
    assert {*STEPS, *INT8.values(), "half-units"} < set(names)
    assert recipe.data.source == f"text/{cell.dataset}"
    for step in STEPS:
        plain, rounded = (next(v for v in recipe.variants if v.name == name) for name in (step, INT8[step]))
        assert plain.model_steps == rounded.model_steps
        assert plain.quantize_spec(recipe.quantize).method == "none"
        assert rounded.quantize_spec(recipe.quantize).method == "dynamic"


@pytest.mark.parametrize("cell", [*cells(), *cells("quick"), *cells("whole")], ids=lambda cell: cell.name)
def test_units_are_halved_with_no_more_learning_than_layers_are_removed_with(cell: Cell) -> None:
    variants = {variant["name"]: variant.get("passes", []) for variant in recipe_of(cell, "text")["variants"]}
    epochs = {
        name: sum(one["distil"]["epochs"] for one in passes if "distil" in one) for name, passes in variants.items()
    }
    shares = [one["prune_units"] for one in variants["half-units"] if "prune_units" in one]
    assert epochs["half-units"] == epochs["lite-4"] >= 1
    assert shares[-1] == {"heads": 0.5, "units": 0.5}


def test_the_plan_has_every_family_on_every_set_and_each_cell_once() -> None:
    planned = cells()
    assert {(cell.family, cell.dataset) for cell in planned} == {(f, s) for f in FAMILIES for s in SETS}
    assert len({cell.name for cell in planned}) == len(planned)


def test_a_cell_says_whether_it_began_from_scratch_and_how_much_of_the_set_it_used() -> None:
    assert "from scratch, 6 layers of 128; 16,000 rows" in Cell("gpt2", "sst2").described
    assert "all rows" in Cell("bert", "sst2").described


def test_the_published_rows_stand_first_and_a_cell_beside_them_in_percent_of_its_teacher() -> None:
    table = beside_published([a_cell()])
    assert table.rows[0][2] == f"{BERT[0].accuracy_percent}/{BERT[0].size_percent}/{BERT[0].time_percent}"
    assert table.rows[1][2:5] == ("97.8/70.0/75.0", "88.9/40.0/40.0", "86.7/30.0/25.0")
    assert table.rows[1][-1] == "98.0/37.5 (lite-4)"


def test_a_cell_without_a_result_says_why() -> None:
    table = beside_published([{"model": "opt", "set": "cola", "no_result": "learned nothing"}])
    assert "learned nothing" in table.rows[1][1]


def test_a_variant_that_was_left_out_keeps_its_row_with_the_reason() -> None:
    table = every_variant([a_cell(failed={"lite-9": "agrees too little"})])
    assert table.rows[-1][:3] == ("gpt2 on sst2", "lite-9", "left out: agrees too little")


def test_pruned_units_are_compared_with_layers_removed_at_equal_joules() -> None:
    row = units_against_layers([a_cell()]).rows[0]
    # Halfway in cost between two layers (0.80) and four (0.88).
    assert row[3] == "84.0%"
    assert row[4] == f"{0.86 / 0.84:.1%}"


def test_targets_are_judged_by_the_cheapest_point_that_keeps_enough_and_misses_are_said() -> None:
    recipe = {**a_cell(), "family": "sst2"}
    recipe["points"][1]["relative_accuracy_lower"] = 0.97
    rows = against_targets([recipe]).rows
    assert rows[0][-2:] == ("100%", "met")
    assert (rows[1][3], rows[1][-2:]) == ("full", ("50.0%", "missed"))
    assert (rows[3][3:5], rows[3][-2:]) == (("lite-4", "98.0% (97.0%)"), ("37.5%", "missed"))
    recipe["points"].append({"name": "pico", "relative_accuracy": 0.955, "cpu_seconds_per_1k": 0.16})
    assert against_targets([recipe]).rows[3][-2:] == ("4.0%", "stretch met")


def test_a_point_that_keeps_enough_by_luck_alone_does_not_pass_by_its_lower_bound() -> None:
    recipe = {**a_cell(), "family": "sst2"}
    recipe["points"][1]["relative_accuracy_lower"] = 0.97
    recipe["points"].append(
        {"name": "lucky", "relative_accuracy": 0.951, "relative_accuracy_lower": 0.93, "cpu_seconds_per_1k": 0.16}
    )
    figure, bound = against_targets([recipe]).rows[3:5]
    assert (figure[2:4], figure[-1]) == (("figure", "lucky"), "stretch met")
    assert (bound[2:4], bound[-1]) == (("lower bound", "lite-4"), "missed")
    assert against_targets([recipe]).rows[2][3:] == ("none", "–", "–", "missed")


def test_a_teacher_below_what_is_asked_is_a_miss() -> None:
    recipe = {**a_cell(), "family": "banking77"}
    assert against_targets([recipe]).rows[0][-1] == "missed"


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 1)), min_size=1, max_size=6, unique_by=lambda p: p[0]),
    st.floats(0, 20),
)
def test_accuracy_at_a_cost_lies_between_the_measured_ones(ladder: list[tuple[float, float]], cost: float) -> None:
    found = at_cost(ladder, cost)
    assert min(a for _, a in ladder) - 1e-9 <= found <= max(a for _, a in ladder) + 1e-9


def test_accuracy_at_a_measured_cost_is_the_measured_one() -> None:
    assert at_cost([(1.0, 0.7), (2.0, 0.8), (3.0, 0.95)], 2.0) == pytest.approx(0.8)


@pytest.mark.trains
def test_a_cell_that_is_done_is_found_again_and_its_figures_stay_as_they_are(
    tiny_base: Path,
    keyword_csv: Path,
    make_recipe: Callable[[Path, Path], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = make_recipe(tiny_base, keyword_csv)
    monkeypatch.setattr(run, "recipe_of", lambda *_: {**raw, "data": {"source": raw["data"]}})
    told: list[str] = []

    def study() -> list[dict[str, Any]]:
        return run_cells([Cell("opt", "mrpc")], tmp_path, tmp_path, tmp_path / "results", Silent(), told.append)

    (made,) = study()
    written = (tmp_path / "results" / "study-opt-mrpc.json").read_bytes()
    assert set(made["variants"]) == {"fp32", "full", "lite"}
    assert "hopeless" in made["failed"]
    assert study() == [made]
    assert (tmp_path / "results" / "study-opt-mrpc.json").read_bytes() == written
    assert json.loads(written) == read_results(tmp_path / "results")["study-opt-mrpc"]
    assert told[0].startswith("cell 1 of 1: opt on mrpc")
    assert "already" in told[-1]
    raw["seed"] = 8
    assert study()[0]["recipe_sha256"] != made["recipe_sha256"]


@pytest.mark.trains
def test_a_cell_whose_teacher_learns_nothing_is_reported_and_the_run_goes_on(
    tiny_base: Path,
    keyword_csv: Path,
    make_recipe: Callable[[Path, Path], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = make_recipe(tiny_base, keyword_csv)
    raw["finetune"] = {"epochs": 1, "learning_rate": 1e-9}
    monkeypatch.setattr(run, "recipe_of", lambda *_: {**raw, "data": {"source": raw["data"]}})
    todo = [Cell("opt", "mrpc"), Cell("t5", "mrpc")]
    made = run_cells(todo, tmp_path, tmp_path, tmp_path / "results", Silent(), lambda line: None)
    assert ["validation accuracy" in one["no_result"] for one in made] == [True, True]


def test_graphs_are_shown_as_shares_of_the_plain_graph_of_their_precision() -> None:
    found = {
        "family": "sst2",
        "precisions": {"torchscript": "fp32", "torchscript-int8": "int8", "full": "int8", "half": "fp16"},
        "cpu_seconds_per_1k": {"torchscript": 4.0, "torchscript-int8": 2.0, "full": 1.5, "half": 3.0},
    }
    assert [row[3:] for row in beside_torchscript(found).rows] == [
        ("1.000", "1.000"),
        ("1.000", "0.500"),
        ("0.750", "0.375"),
        ("–", "0.750"),
    ]


def test_a_cell_that_failed_for_the_machine_s_sake_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def full_disk(*_: Any) -> None:
        asked.append("again")
        raise StorageError("work", "no space is left", "free some")

    monkeypatch.setattr(run, "compile_recipe", full_disk)
    for _ in range(2):
        with pytest.raises(StorageError):
            run_cells([Cell("opt", "mrpc")], tmp_path, tmp_path, tmp_path / "results", Silent(), lambda line: None)
    assert len(asked) == 2
    assert read_results(tmp_path / "results") == {}


def test_a_data_folder_that_is_none_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "compile.study", str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("compile.study: data: ")
    assert "Traceback" not in done.stderr
