"""A manifest that contradicts itself is refused where it is made, not where it is served."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.manifest import CostModel, Manifest
from models.store import Version


def changed(version: Version, **changes: Any) -> dict[str, Any]:
    return {**version.manifest.model_dump(mode="json"), **changes}


def test_a_manifest_survives_its_own_json(tiny_version: Version) -> None:
    manifest = tiny_version.manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_a_variant_is_found_by_its_name(tiny_version: Version) -> None:
    assert tiny_version.manifest.variant("lite").name == "lite"
    with pytest.raises(KeyError, match="tiny"):
        tiny_version.manifest.variant("tiny")


def test_every_file_is_listed_with_the_tokenizer_first(tiny_version: Version) -> None:
    names = [ref.path for ref in tiny_version.manifest.files()]
    assert names == ["tokenizer.json", "full.onnx", "lite.onnx", "nano.onnx"]


def test_a_manifest_without_the_cost_of_tokenizing_is_read_and_counts_the_graphs_alone(tiny_version: Version) -> None:
    tree = changed(tiny_version)
    for point in tree["points"]:
        del point["tokenizing_cpu_seconds_per_1k"], point["alone_cpu_seconds_per_1k"]
        point["joules_per_1k"] = 5.0
    for point in Manifest.model_validate(tree).points:
        assert point.tokenizing_cpu_seconds_per_1k is None
        assert point.alone_joules_per_1k is None
        assert point.answer_cpu_seconds_per_1k == point.cpu_seconds_per_1k
        assert point.answer_joules_per_1k == pytest.approx(5.0)


def _first(items: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    return [{**items[0], **changes}, *items[1:]]


BROKEN: dict[str, Any] = {
    "variants: names repeat": lambda tree: {"variants": [tree["variants"][0], *tree["variants"]]},
    "points: names repeat": lambda tree: {"points": [tree["points"][0], *tree["points"]]},
    "labels: names repeat": lambda tree: {"labels": ["card", "card"]},
    "points: must run from full quality": lambda tree: {"points": tree["points"][::-1]},
    "variant 'gone' is not in": lambda tree: {"points": _first(tree["points"], variant="gone")},
    "is for reference only": lambda tree: {"variants": _first(tree["variants"], reference=True)},
    "inputs: must be": lambda tree: {"inputs": ["input_ids"]},
    "not.*position_ids": lambda tree: {"inputs": ["input_ids", "attention_mask", "position_ids"]},
    "Extra inputs are not permitted": lambda tree: {"colour": "green"},
    "schema_version": lambda tree: {"schema_version": 2},
    "pattern": lambda tree: {"family": "../elsewhere"},
    "finite": lambda tree: {"points": _first(tree["points"], cpu_seconds_per_1k=float("inf"))},
    "labels\n": lambda tree: {"labels": []},
    "text-regression has one": lambda tree: {"task": "text-regression"},
    "task": lambda tree: {"task": "regression"},
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_is_wrong_with_a_manifest_is_named(tiny_version: Version, message: str) -> None:
    tree = changed(tiny_version)
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate({**tree, **BROKEN[message](tree)})


CASCADE = {"first": "nano", "temperature": 1.5, "threshold": 0.8, "escalated_share": 0.25}


def cascaded(version: Version, variant: str = "full", **changes: Any) -> dict[str, Any]:
    """The manifest's tree with a cascade (`full` behind `nano` unless changed) as its second point."""
    tree = changed(version)
    point = {**tree["points"][0], "name": "cascade", "variant": variant, "cascade": {**CASCADE, **changes}}
    return {**tree, "points": [tree["points"][0], point, *tree["points"][1:]]}


def test_a_cascade_is_a_point_like_any_other(tiny_version: Version) -> None:
    manifest = Manifest.model_validate(cascaded(tiny_version))
    cascade = manifest.points[1].cascade
    assert cascade is not None
    assert (cascade.first, cascade.temperature, cascade.threshold, cascade.escalated_share) == ("nano", 1.5, 0.8, 0.25)
    assert [point.cascade for point in manifest.points if point.name != "cascade"] == [None] * 3
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_a_manifest_written_before_there_were_cascades_is_read(tiny_version: Version) -> None:
    tree = changed(tiny_version)
    tree["points"] = [
        {name: value for name, value in point.items() if name not in ("cascade", "relative_accuracy_lower")}
        for point in tree["points"]
    ]
    assert Manifest.model_validate(tree) == tiny_version.manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": "gone"}, "points.cascade: variant 'gone' is not in"),
        ({"variant": "gone"}, "points.cascade: variant 'gone' is not in"),
        ({"first": "full"}, "points.cascade: cascade.first 'full' must be cheaper than 'full'"),
        ({"variant": "nano", "first": "full"}, "points.cascade: cascade.first 'full' must be cheaper than 'nano'"),
        ({"temperature": 0}, "temperature"),
        ({"threshold": 1.01}, "threshold"),
        ({"escalated_share": -0.1}, "escalated_share"),
        ({"temperature": float("nan")}, "temperature"),
        ({"third": "lite"}, "Extra inputs"),
    ],
)
def test_a_cascade_that_cannot_be_is_refused(tiny_version: Version, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate(cascaded(tiny_version, **changes))


def test_a_cascade_asks_no_reference(tiny_version: Version) -> None:
    tree = cascaded(tiny_version, first="lite")
    tree["points"] = [point for point in tree["points"] if point["name"] in ("full", "cascade")]
    tree["variants"] = [{**variant, "reference": variant["name"] == "lite"} for variant in tree["variants"]]
    with pytest.raises(ValidationError, match=r"points\.cascade: variant 'lite' is for reference only"):
        Manifest.model_validate(tree)


def test_one_number_has_no_cascade(tiny_version: Version) -> None:
    tree = {**cascaded(tiny_version), "task": "text-regression", "labels": ["score"]}
    with pytest.raises(ValidationError, match=r"points\.cascade: one number has no confidence"):
        Manifest.model_validate(tree)
    manifest = Manifest.model_validate({**tree, "points": changed(tiny_version)["points"]})
    assert (manifest.regression, manifest.accuracy_name) == (True, "R2")
    assert (tiny_version.manifest.regression, tiny_version.manifest.accuracy_name) == (False, "accuracy")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a//b", "a/../b", ".hidden", "a/.b", "", "a\n", "a b"])
def test_a_file_outside_the_version_cannot_be_named(tiny_version: Version, path: str) -> None:
    tree = changed(tiny_version)
    with pytest.raises(ValidationError, match="path"):
        Manifest.model_validate({**tree, "tokenizer": {**tree["tokenizer"], "path": path}})


def test_a_manifest_cannot_be_changed(tiny_version: Version) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        tiny_version.manifest.family = "other"


costs = st.floats(0, 1e9)


@given(costs, costs, costs, st.integers(1, 4096))
def test_a_text_always_weighs_something_and_a_longer_one_no_less(a: float, b: float, c: float, tokens: int) -> None:
    cost = CostModel(fixed_ns=a, linear_ns=b, quadratic_ns=c)
    assert 0 < cost.weight(tokens) <= cost.weight(tokens + 1)
