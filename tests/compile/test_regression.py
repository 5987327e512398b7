"""Real labels the whole way: a recipe is compiled, published with R2 as its accuracy, answers in the labels' unit."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")

import torch

from compile.artifact import Artifact
from compile.bases import find_base
from compile.data.loader import load_dataset
from compile.line import plan
from compile.measure.scores import r2
from compile.passes.base import Context
from compile.passes.finetune import Finetune
from compile.pipeline import Result, compile_recipe
from compile.recipe import DataSpec, Recipe, parse_recipe
from compile.report import main_table
from compile.scale import LabelScale
from compile.specs.finetune import FinetuneSpec
from models.store import Store
from server.engine.family import load_family
from tests.compile.conftest import WORDS
from tests.support.apps import post, serving

MakeRecipe = Callable[[Path, Path], dict[str, Any]]
# Far from 0 and wide: a head that learned in this unit would not get there within these epochs.
VALUES = {"cancel": 1120.0, "refund": 1180.0, "broken": 1260.0, "password": 1340.0}
CUTS = [
    {"drop_layers": {"keep": 2, "choose": "divergence", "samples": 32}},
    {"prune_units": {"heads": 0.5, "units": 0.5}},
    {"reconstruct": {}},
    {"distil": {"epochs": 3, "learning_rate": 3e-3, "batch_rows": 16, "hidden_weight": 0.1}},
    {"qat": {"steps": 10, "batch_rows": 16}},
]


def write_rows(path: Path, rows: int, pair: bool) -> Path:
    """Sentences whose label is the value of the keyword in them (in the second text of a pair), and some noise."""
    rng, others = random.Random(3), [word for word in WORDS if word not in VALUES]
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "text_b", "label"] if pair else ["text", "label"])
        for at in range(rows):
            keyword = list(VALUES)[at % len(VALUES)]
            words = [*rng.choices(others, k=rng.randint(2, 9)), keyword]
            rng.shuffle(words)
            texts = [" ".join(rng.choices(others, k=3)), " ".join(words)] if pair else [" ".join(words)]
            writer.writerow([*texts, f"{VALUES[keyword] + rng.gauss(0, 10):.2f}"])
    return path


def recipe_of(make_recipe: MakeRecipe, base: Path, data: Path, **changes: Any) -> Recipe:
    raw = {**make_recipe(base, data), "data": {"source": str(data), "task": "regression"}, **changes}
    return parse_recipe(raw, None, {})


@pytest.fixture(scope="module")
def recipe(tiny_base: Path, make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    data = write_rows(tmp_path_factory.mktemp("numbers") / "rows.csv", 400, pair=False)
    hopeless = {"name": "hopeless", "passes": [CUTS[1]], "min_relative_accuracy": 1.0}
    lite = {"name": "lite", "passes": CUTS, "min_relative_accuracy": 0.8}
    return recipe_of(make_recipe, tiny_base, data, variants=[{"name": "full"}, lite, hopeless])


@pytest.fixture(scope="module")
def published(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("published")
    return compile_recipe(recipe, Store(folder / "store"), folder / "work")


@pytest.mark.trains
def test_variants_are_published_with_r2_as_their_accuracy_and_its_bounds(published: Result, recipe: Recipe) -> None:
    manifest = published.version.manifest
    assert (manifest.task, manifest.labels) == ("text-regression", ("score",))
    assert manifest.teacher_accuracy > 0.9
    deviation = float(load_dataset(recipe.data, recipe.seed).test.labels.std())
    for variant in manifest.variants:
        shown = variant.evidence
        assert shown.rmse is not None
        assert shown.accuracy == pytest.approx(1 - (shown.rmse.value / deviation) ** 2, abs=1e-4)
        assert shown.accuracy_lower < shown.accuracy
        assert shown.relative_accuracy == pytest.approx(shown.accuracy / manifest.teacher_accuracy)
        assert (shown.matthews, shown.f1_macro) == (None, None)
    assert [point.name for point in manifest.points] == ["full", "lite"]
    for point in manifest.points:
        assert point.cascade is None
        assert point.relative_accuracy_lower is not None
        assert 0.8 < point.relative_accuracy_lower <= point.relative_accuracy + 1e-9
    assert "calibration" not in manifest.variant("full").notes
    full = manifest.variant("full").evidence
    assert full.agreement_with_fp32 is not None
    assert full.agreement_with_fp32 >= 0.9


@pytest.mark.trains
def test_a_floor_judges_r2_and_leaves_out_what_misses_it(published: Result) -> None:
    assert set(published.failures) == {"hopeless"}
    assert "must be >=" in published.failures["hopeless"]


@pytest.mark.trains
def test_the_report_speaks_of_r2_and_never_of_accuracy(published: Result) -> None:
    assert published.report_failed is None
    told = published.report.read_text().split("Recipe, every setting")[0].replace("accuracy-against-joules.png", "")
    assert "one real number, 40 test texts" in told
    assert "of the teacher's R2: " in told
    assert "| R2 (at least) |" in told
    assert "R2 is 1 - mean squared error / variance" in told
    assert all(
        f"| {row} |" in told for row in ("Pearson correlation", "Spearman correlation", "root mean squared error")
    )
    assert "accuracy" not in told
    assert "| % R2 |" in main_table(published.version.manifest)


@pytest.mark.trains
async def test_a_server_answers_in_the_labels_unit(published: Result, recipe: Recipe) -> None:
    test = load_dataset(recipe.data, recipe.seed).test
    async with serving(load_family(published.version), eco="lite") as (client, _, _):
        reply = await post(client, [[text] for text in test.texts[:32]])
        eco = await client.post("/predict", json={"inputs": test.texts[32]}, headers={"X-Quality": "eco"})
    assert all([one["label"] for one in row] == ["score"] for row in reply.json())
    served = np.array([row[0]["score"] for row in reply.json()])
    assert r2(test.labels[:32].astype(np.float64), served) > 0.9
    assert eco.headers["x-jouleserve-point"] == "lite"
    assert 1000 < eco.json()[0]["score"] < 1500
    assert 1100 < served.min() < served.max() < 1400


@pytest.mark.trains
async def test_a_pair_is_judged_and_answered_likewise(tiny_base: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "pairs.csv", 300, pair=True)
    recipe = recipe_of(make_recipe, tiny_base, data, variants=[{"name": "full"}])
    result = compile_recipe(recipe, Store(tmp_path / "store"), tmp_path / "work")
    manifest = result.version.manifest
    assert (manifest.task, manifest.pair) == ("text-regression", True)
    assert manifest.points[0].accuracy_lower > 0.5
    async with serving(load_family(result.version), eco="full") as (client, _, _):
        reply = await post(client, [["the parcel", "please cancel"], ["the parcel", "my password"]])
    low, high = (row[0]["score"] for row in reply.json())
    assert low < 1200 < 1280 < high


@pytest.mark.trains
def test_training_that_is_cut_short_and_goes_on_ends_with_the_same_weights(recipe: Recipe, tmp_path: Path) -> None:
    dataset = load_dataset(recipe.data, recipe.seed)
    context = Context(dataset, find_base(recipe.base), seed=7, threads=1, max_tokens=32, batch_rows=16)
    inputs = {"base": Artifact("base", "base", "b", Path(str(recipe.base)))}
    spec = FinetuneSpec(epochs=2, learning_rate=3e-3, batch_rows=16, freeze_embeddings=False)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()

    def kill() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Finetune(spec, "mean", 7, 32).call(inputs, broken, replace(context, note_spent=kill))
    for folder in (whole, broken):
        Finetune(spec, "mean", 7, 32).call(inputs, folder, context)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_no_cascade_is_planned_for_one_number(recipe: Recipe) -> None:
    assert recipe.calibrate.enabled
    assert "calibrate" not in [name for _, name in plan(recipe)]
    classes = recipe.model_copy(update={"data": DataSpec(source="support-intents")})
    assert "calibrate" in [name for _, name in plan(classes)]


def test_a_head_in_standard_units_answers_the_same_when_its_scale_is_folded_in() -> None:
    scale, vectors = LabelScale(300.0, 50.0), torch.randn(5, 8)
    head = torch.nn.Linear(8, 1)
    before = head(vectors)
    scale.restore(head)
    assert torch.allclose(head(vectors), before * 50 + 300, atol=1e-3)
    assert torch.allclose(scale.standard(head(vectors)), before, atol=1e-5)
    scale.standardise(head)
    assert torch.allclose(head(vectors), before, atol=1e-5)


def test_classes_have_no_scale() -> None:
    labels, head = torch.tensor([3, 1]), torch.nn.Linear(4, 2)
    weights = head.weight.clone()
    scale = LabelScale()
    scale.standardise(head)
    scale.restore(head)
    assert scale.unit == 1
    assert scale.standard(labels) is labels
    assert torch.equal(head.weight, weights)


@pytest.mark.parametrize(("mean", "deviation", "unit"), [(0.0, 0.2, 0.2), (300.0, 50.0, 50.0), (-300.0, 1.0, 3.0)])
def test_gates_measure_by_the_labels_deviation_unless_float32_is_coarser(
    mean: float, deviation: float, unit: float
) -> None:
    assert LabelScale(mean, deviation).unit == pytest.approx(unit)
