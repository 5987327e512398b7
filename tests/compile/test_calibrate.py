"""The pass `calibrate` and what is published of it: real graphs whose weak spots are known."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")

import onnx
from onnx import TensorProto, helper, numpy_helper

from compile.artifact import Artifact
from compile.bases import find_base
from compile.cascade import confidence
from compile.data.dataset import Dataset, Split
from compile.errors import RequirementFailed
from compile.passes.base import Context
from compile.passes.calibrate import VALIDATION, Calibrate, calibrate_inputs
from compile.passes.evaluate import PREDICTIONS, Evaluate
from compile.passes.export import FILE
from compile.points import cascade_candidates, choose_points
from compile.recipe import MeasureSpec
from compile.specs.calibrate import CalibrateSpec
from compile.text import load_tokenizer
from models.manifest import CostModel, Evidence, FileRef, Variant

EASY, HARD, TRAP = ("cancel", "refund", "broken"), ("password", "parcel", "address"), "money"
FILLERS = ("now", "the", "my", "please", "never")
COSTS = {"fp32": 20.0, "full": 10.0, "nano": 2.0}
MEASURE = MeasureSpec(batch_rows=4, repeats=1, texts=64)


def split(rows: int, seed: int) -> Split:
    """Six of ten texts are easy, the other three are hard; of twenty, one is a trap, whose label is the first."""
    rng, texts, labels = random.Random(seed), [], []
    for at in range(rows):
        label = 0 if at % 20 == 0 else rng.randrange(3)
        word = TRAP if at % 20 == 0 else (EASY if at % 10 < 6 else HARD)[label]
        words = [*rng.choices(FILLERS, k=rng.randint(1, 9)), word]
        texts.append(" ".join(words))
        labels.append(label)
    return Split(tuple(texts), np.array(labels, dtype=np.int64))


@pytest.fixture(scope="module")
def context(tiny_base: Path) -> Context:
    dataset = Dataset("words", ("a", "b", "c"), split(40, 1), split(200, 2), split(300, 3))
    return Context(dataset, find_base(str(tiny_base)), seed=3, threads=1, max_tokens=32, batch_rows=4)


def write_graph(path: Path, context: Context, scores: dict[str, tuple[int, float]]) -> None:
    """A graph that adds up what each word says: word -> (label, score)."""
    tokenizer = load_tokenizer(context.base.path / "tokenizer.json")
    table = np.zeros((tokenizer.get_vocab_size(), 3), dtype=np.float32)
    for word, (label, score) in scores.items():
        table[tokenizer.token_to_id(word), label] = score
    ints = [helper.make_tensor_value_info(n, TensorProto.INT64, ["r", "t"]) for n in ("input_ids", "attention_mask")]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["rows", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "second"], ["logits"], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "second"),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["r", 3])]
    graph = helper.make_graph(nodes, "words", ints, outputs, constants)
    path.parent.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


KNOWN = {word: (label, 3.0) for words in (EASY, HARD) for label, word in enumerate(words)}
SCORES = {
    "fp32": {**KNOWN, TRAP: (0, 3.0)},
    "full": {**KNOWN, TRAP: (1, 3.0)},
    # Sure of easy words and of the trap, wrong about hard ones, and hardly sure of it.
    "nano": {**KNOWN, TRAP: (1, 3.0), **{word: ((label + 1) % 3, 0.2) for label, word in enumerate(HARD)}},
}


@pytest.fixture(scope="module")
def inputs(context: Context, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """What the line hands to the pass."""
    folder, made = tmp_path_factory.mktemp("made"), {}
    for name, scores in SCORES.items():
        write_graph(folder / name / FILE, context, scores)
        graph = Artifact("quantize", name, name, folder / name)
        (folder / f"{name}-answers").mkdir()
        judged_by = {"teacher": made["fp32"][1]} if made else {}
        meta = Evaluate(4, 0.0, 0.0).call({"graph": graph, **judged_by}, folder / f"{name}-answers", context)
        made[name] = (graph, Artifact("evaluate", name, name, folder / f"{name}-answers", meta))
    costs = {name: {"cpu_seconds_per_1k": cpu, "joules_per_1k": 3 * cpu} for name, cpu in COSTS.items()}
    return calibrate_inputs(
        Artifact("data", "data", "d", folder), Artifact("measure", "all", "m", folder, {"variants": costs}), made
    )


@pytest.fixture(scope="module")
def known(inputs: dict[str, Artifact], context: Context, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the pass makes known."""
    return a_pass().call(inputs, tmp_path_factory.mktemp("out"), context)


def a_pass(**changes: Any) -> Calibrate:
    return Calibrate(CalibrateSpec(**changes), MEASURE, ("full", "nano"), "fp32", seed=7)


def test_thresholds_come_from_validation_texts_and_the_test_texts_change_none(
    known: dict[str, Any], inputs: dict[str, Artifact], context: Context, tmp_path: Path
) -> None:
    shuffled = replace(context.dataset.test, labels=(context.dataset.test.labels + 1) % 3)
    other = replace(context, dataset=replace(context.dataset, test=shuffled))
    again = a_pass().call(inputs, tmp_path, other)
    assert again["rated"] == known["rated"]
    assert again["left_out"] == known["left_out"]
    assert set(again["judged"]) == set(known["judged"])
    assert all(again["judged"][name]["accuracy"] < one["accuracy"] for name, one in known["judged"].items())


def test_a_cascade_that_is_unsure_of_the_right_texts_keeps_the_accuracy_of_the_dear_variant(
    known: dict[str, Any], inputs: dict[str, Artifact]
) -> None:
    full, nano = (inputs[f"evaluation/{name}"].meta for name in ("full", "nano"))
    assert full["accuracy"] == pytest.approx(0.95)
    assert nano["accuracy"] == pytest.approx(0.55)
    best = max(known["judged"].values(), key=lambda point: point["accuracy"])
    assert best["accuracy"] == full["accuracy"]
    assert best["test_escalated_share"] == pytest.approx(0.4, abs=0.02)
    assert best["relative_accuracy"] == pytest.approx(0.95)
    assert 0.9 < best["relative_accuracy_lower"] < 0.95
    assert best["accuracy_lower"] < best["accuracy"]


def test_a_judged_cascade_costs_the_first_and_what_the_second_was_measured_to_spend(known: dict[str, Any]) -> None:
    for point in known["judged"].values():
        assert point["share_of_second_cost"] > 0
        cost = COSTS["nano"] + point["share_of_second_cost"] * COSTS["full"]
        assert point["cpu_seconds_per_1k"] == pytest.approx(cost)
        assert point["joules_per_1k"] == pytest.approx(3 * cost)


def test_answers_count_as_the_server_would_give_them(
    known: dict[str, Any], inputs: dict[str, Artifact], context: Context
) -> None:
    logits = {name: np.load(inputs[f"evaluation/{name}"].path / PREDICTIONS)["logits"] for name in ("full", "nano")}
    for point in known["rated"]:
        if point["name"] in known["judged"]:
            unsure = confidence(logits["nano"], point["temperature"]) < point["threshold"]
            said = np.where(unsure, logits["full"].argmax(-1), logits["nano"].argmax(-1))
            right = (said == context.dataset.test.labels).mean()
            assert known["judged"][point["name"]]["accuracy"] == pytest.approx(right)


def test_temperatures_and_calibration_errors_are_kept_with_the_validation_answers(
    inputs: dict[str, Artifact], context: Context, tmp_path: Path
) -> None:
    meta = a_pass().call(inputs, tmp_path, context)
    assert all(gate.holds for gate in a_pass().ensures(inputs, tmp_path, meta, context))
    assert set(meta["temperatures"]) == {"full", "nano"}
    for one in meta["temperatures"].values():
        assert one["nll_after"] <= one["nll_before"] + 1e-9
        assert 0 <= one["test_ece_after"] <= 1
    assert {name: a.shape for name, a in np.load(tmp_path / VALIDATION).items()} == {
        f"logits/{name}": (200, 3) for name in SCORES
    }
    json.dumps(meta, allow_nan=False)


def test_a_temperature_that_made_things_worse_would_be_refused(
    known: dict[str, Any], inputs: dict[str, Artifact], context: Context, tmp_path: Path
) -> None:
    worse = {"temperatures": {"full": {**known["temperatures"]["full"], "nll_after": 9.0}}}
    assert not all(gate.holds for gate in a_pass().ensures(inputs, tmp_path, worse, context))


def test_one_output_has_no_confidence_to_calibrate(inputs: dict[str, Artifact], context: Context) -> None:
    one = replace(context, dataset=replace(context.dataset, labels=("score",)))
    with pytest.raises(RequirementFailed, match=r"calibrate\.enabled"):
        a_pass().requires(inputs, one)


def test_the_limit_holds_and_single_variants_stay(
    inputs: dict[str, Artifact], context: Context, tmp_path: Path
) -> None:
    meta = a_pass(max_points=1).call(inputs, tmp_path, context)
    assert meta["judged"] == {}
    assert "nano" not in meta["left_out"]
    assert "at most" in " ".join(meta["left_out"].values())


@pytest.fixture(scope="module")
def variants(inputs: dict[str, Artifact]) -> tuple[Variant, ...]:
    made = []
    for name, cpu in COSTS.items():
        shown = inputs[f"evaluation/{name}"].meta
        evidence = Evidence(
            accuracy=shown["accuracy"],
            accuracy_lower=shown["accuracy_lower"],
            relative_accuracy=shown["relative_accuracy"],
            relative_accuracy_lower=shown["relative_accuracy_lower"],
            test_rows=300,
            parameters=1,
            size_bytes=1,
            cpu_seconds_per_1k=cpu,
            joules_per_1k=3 * cpu,
        )
        file = FileRef(path=f"{name}.onnx", sha256="0" * 64, size_bytes=1)
        cost = CostModel(fixed_ns=1, linear_ns=1, quadratic_ns=0)
        parts = {"name": name, "precision": "int8", "layers": 1, "graph_form": "x", "model": file, "cost": cost}
        made.append(Variant(**parts, evidence=evidence, reference=name == "fp32"))
    return tuple(made)


def test_points_run_from_full_quality_to_cheapest_with_cascades_between(
    known: dict[str, Any], variants: tuple[Variant, ...]
) -> None:
    points, left_out = choose_points(variants, known, {})
    assert (points[0].name, points[-1].name) == ("full", "nano")
    costs = [point.cpu_seconds_per_1k for point in points]
    assert costs == sorted(costs, reverse=True)
    lower = [point.accuracy_lower for point in points]
    assert lower == sorted(lower, reverse=True)
    between = [point for point in points if point.cascade is not None]
    assert between
    for point in between:
        assert point.cascade is not None
        assert (point.variant, point.cascade.first) == ("full", "nano")
        assert point.relative_accuracy_lower is not None
        assert point.name == f"full-nano-{100 * (1 - point.cascade.escalated_share):.0f}"
    assert points[0].relative_accuracy_lower is not None
    names = {point.name for point in points} | set(left_out)
    assert names == {one["name"] for one in known["rated"]}
    assert not {point.name for point in points} & set(left_out)


def test_points_say_what_answers_cost_from_the_text_on_and_a_cascade_tokenizes_once(
    known: dict[str, Any], variants: tuple[Variant, ...]
) -> None:
    answered = {
        "tokenizing_cpu_seconds_per_1k": 0.05,
        "alone_cpu_seconds_per_1k": {name: 2 * cost + 0.05 for name, cost in COSTS.items()},
    }
    points, _ = choose_points(variants, known, answered)
    for point in points:
        assert point.answer_cpu_seconds_per_1k == pytest.approx(point.cpu_seconds_per_1k + 0.05)
        assert point.alone_cpu_seconds_per_1k == pytest.approx(2 * point.cpu_seconds_per_1k + 0.05)
        assert point.alone_joules_per_1k == pytest.approx(3 * (2 * point.cpu_seconds_per_1k + 0.05))
    assert any(point.cascade is not None for point in points)


def test_a_cascade_that_the_test_texts_show_beaten_is_left_out_with_the_winner(
    known: dict[str, Any], variants: tuple[Variant, ...]
) -> None:
    name = next(iter(known["judged"]))
    poor = {**known["judged"][name], "accuracy": 0.1, "accuracy_lower": 0.05}
    points, left_out = choose_points(variants, {**known, "judged": {**known["judged"], name: poor}}, {})
    assert name not in [point.name for point in points]
    assert left_out[name] == "'nano' is no dearer and no worse on test texts"
    dear = {**known["judged"][name], "cpu_seconds_per_1k": 10.5}
    _, left_out = choose_points(variants, {**known, "judged": {name: dear}}, {})
    assert left_out[name] == "measured no cheaper than 'full'"


def test_without_calibration_the_variants_on_the_front_are_the_points(variants: tuple[Variant, ...]) -> None:
    points, left_out = choose_points(variants, {}, {})
    assert [point.name for point in points] == ["full", "nano"]
    assert left_out == {}
    for point in points:
        assert point.relative_accuracy_lower is not None
        assert 0 < point.relative_accuracy_lower <= point.relative_accuracy


def test_every_cascade_is_reported_with_its_figures_and_the_unpublished_with_the_reason(
    known: dict[str, Any], variants: tuple[Variant, ...]
) -> None:
    points, left_out = choose_points(variants, known, {})
    published = {point.name for point in points if point.cascade is not None}
    made = {one["name"]: one for one in cascade_candidates(known, {point.name for point in points}, left_out)}
    assert set(made) == {one["name"] for one in known["rated"]} - {"full", "nano"}
    assert {name for name, one in made.items() if one["published"]} == published
    for name, one in made.items():
        assert one["kind"] == "cascade"
        assert ("reason" in one) == (name not in published)
        assert ("test" in one) == (name in known["judged"])
        assert one["cpu_seconds_per_1k"] == pytest.approx(COSTS["nano"] + one["escalated_share"] * COSTS["full"])
