"""A candidate that misses a gate is left out with all that is known of a variant: it can be seen what was left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compile.passes.base import Gate
from models.manifest import Evidence, Manifest
from models.store import Store

pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
pytestmark = pytest.mark.trains

MakeRecipe = Callable[[Path, Path], dict[str, Any]]
CUT = {"drop_layers": {"layers": [1]}}
COARSE = {"quantize": {"method": "weight_only_4bit", "max_fp32_matmuls": 0}}


@pytest.fixture(scope="module")
def compiled(
    tiny_base: Path, keyword_csv: Path, make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Manifest, str]:
    """The manifest and the report of a run of which one variant passes; two have a graph, one comes to none."""
    from compile.passes.quantize import Quantize
    from compile.pipeline import compile_recipe
    from compile.recipe import parse_recipe

    def stricter(self: Quantize, inputs: Any, out: Path, meta: Any, context: Any) -> list[Gate]:
        # The tiny model's answers survive four bits: a limit that nothing reaches stands for a model's whose do not.
        gates = ensures(self, inputs, out, meta, context)
        return [Gate("agreement", meta["validation_agreement"], 2.0), *gates] if meta["precision"] == "int4" else gates

    folder, ensures = tmp_path_factory.mktemp("failed"), Quantize.ensures
    variants = [
        {"name": "full"},
        {"name": "poor", "passes": [CUT], "min_relative_accuracy": 1.0},
        {"name": "coarse", "passes": [CUT, COARSE], "min_relative_accuracy": 0.0},
        {"name": "small", "passes": [CUT, {"prune_units": {"units": 0.1, "heads": 0.5}}]},
    ]
    recipe = {**make_recipe(tiny_base, keyword_csv), "variants": variants}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Quantize, "ensures", stricter)
        result = compile_recipe(parse_recipe(recipe, None, {}), Store(folder / "store"), folder / "work")
    return result.version.manifest, result.report.read_text()


def candidate(manifest: Manifest, name: str) -> dict[str, Any]:
    return next(one for one in manifest.candidates if one["name"] == name)


@pytest.mark.parametrize(("name", "missed"), [("poor", "evaluate"), ("coarse", "quantize")])
def test_a_graph_that_missed_a_gate_has_the_evidence_of_a_variant(
    compiled: tuple[Manifest, str], name: str, missed: str
) -> None:
    manifest, report = compiled
    failed = candidate(manifest, name)
    assert failed["reason"].startswith(f"{name}: pass '{missed}'")
    assert not failed["published"]
    assert [v.name for v in manifest.variants] == ["fp32", "full"]
    shown = Evidence.model_validate(failed["evidence"])
    assert shown.accuracy_lower < shown.accuracy < manifest.teacher_accuracy
    assert shown.relative_accuracy_lower is not None
    assert shown.agreement_with_fp32 is not None
    assert shown.parameters < manifest.variant("full").evidence.parameters
    assert shown.macs_per_text is not None
    assert shown.cpu_seconds_per_1k > 0
    assert shown.joules_per_1k is not None
    assert len(shown.latency) > 3
    assert shown.compile_joules is not None
    assert f"{name} (left out)" in report
    assert f"{shown.accuracy:.4f} ({shown.accuracy_lower:.4f})" in report


def test_what_a_pass_cost_that_missed_its_gate_is_counted(compiled: tuple[Manifest, str]) -> None:
    for name, missed in (("poor", "evaluate"), ("coarse", "quantize")):
        costs = [one["cpu_seconds"] for one in candidate(compiled[0], name)["passes"] if one["pass"] == missed]
        assert costs
        assert min(costs) > 0
    made = [entry.partition(":")[0] for entry in candidate(compiled[0], "coarse")["lineage"]]
    assert made[-1] == "quantize"


def test_a_candidate_that_came_to_no_graph_says_what_it_cost(compiled: tuple[Manifest, str]) -> None:
    failed = candidate(compiled[0], "small")
    assert "no model is so small" in failed["reason"]
    assert failed["known"]["compile_cpu_seconds"] > 0
    assert failed["known"]["layers"] == 1
    assert "evidence" not in failed
