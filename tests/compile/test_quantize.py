"""Every way to fewer bits: what the file then holds, how near its answers are, and what is done where they are not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
onnx = pytest.importorskip("onnx")

from compile.artifact import Artifact  # noqa: E402
from compile.bases import find_base  # noqa: E402
from compile.checkpoint import from_base, load, save  # noqa: E402
from compile.data.dataset import Dataset, Split  # noqa: E402
from compile.errors import GateFailed  # noqa: E402
from compile.graph.forms import export_form  # noqa: E402
from compile.graph.quantization import (  # noqa: E402
    by_sensitivity,
    calibrate,
    head_nodes,
    quantize_4bit,
    quantize_static,
    to_fp16,
)
from compile.graph.sessions import open_session  # noqa: E402
from compile.graph.smoothing import matmuls, rounding_error  # noqa: E402
from compile.measure.accuracy import graph_logits, torch_outputs  # noqa: E402
from compile.model import Classifier  # noqa: E402
from compile.passes.base import Context  # noqa: E402
from compile.passes.export import FILE, sample_inputs  # noqa: E402
from compile.passes.qat import Qat  # noqa: E402
from compile.passes.quantize import Quantize  # noqa: E402
from compile.passes.teach import Teach  # noqa: E402
from compile.rounding import projections, round_activations, round_weights, rounded  # noqa: E402
from compile.runner import Runner  # noqa: E402
from compile.specs.quantize import QatSpec, QuantizeSpec  # noqa: E402

FORMS = ("mha", "ragged")


@dataclass(frozen=True)
class Made:
    context: Context
    model: Classifier
    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / FILE

    @property
    def graph(self) -> Artifact:
        meta = {"form": "ragged", "layers": 3, "parameters": 1, "macs_per_text": 1}
        return Artifact("export", "full", "graph", self.folder, meta)

    def batches(self) -> list[list[int]]:
        return [list(range(at, at + 16)) for at in range(0, 32, 16)]

    def form(self, name: str) -> Path:
        path = self.source if name == "ragged" else self.folder / f"{name}.onnx"
        if not path.is_file():
            export_form(self.model, name, False, 18, path)
        return path


@pytest.fixture(scope="module")
def made(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A random model whose labels are its own answers: accuracy in fp32 is 1."""
    folder = tmp_path_factory.mktemp("made")
    words = ("refund", "cancel", "late", "card", "order", "money", "parcel")
    texts = tuple(f"{a} the {b}" + f" it {c} now" * (i % 3) for i, a in enumerate(words) for b in words for c in words)
    nothing = Split(texts, np.zeros(len(texts), dtype=np.int64))
    context = Context(Dataset("d", ("a", "b", "c"), nothing, nothing, nothing), find_base(str(tiny_base)), 0, 1, 32, 16)
    torch.manual_seed(6)
    model = from_base(context.base, "mean", 3).eval()
    with torch.no_grad():
        for parameter in model.layers.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
        model.head.weight.mul_(20)
        model.head.bias.sub_(torch.from_numpy(torch_outputs(model, context.train, context.pad)[0].mean(0)))
    export_form(model, "ragged", False, 18, folder / FILE)
    answers = graph_logits(open_session(folder / FILE), context.train, context.pad, 16).argmax(-1)
    labelled = Split(texts, answers)
    context.dataset = Dataset("d", ("a", "b", "c"), labelled, labelled, labelled)
    assert len(Counter(answers.tolist())) == 3
    return Made(context, model, folder)


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def difference(made: Made, one: Path, other: Path) -> float:
    arrays = sample_inputs(8, 12, made.context, np.random.default_rng(5))
    exact, moved = (open_session(path).run(["logits"], arrays)[0] for path in (one, other))
    assert moved.dtype == np.float32
    return float(np.abs(exact - moved).max() / np.abs(exact).max())


@pytest.mark.parametrize("form", FORMS)
def test_static_graphs_have_fixed_ranges_and_leave_the_residual_stream_alone(
    made: Made, tmp_path: Path, form: str
) -> None:
    source, target = made.form(form), tmp_path / "static.onnx"
    ranges = calibrate(source, made.context.train, made.batches(), made.context.pad, percentile=False)
    done = quantize_static(source, target, head_nodes(source), False, True, ranges)
    assert len(done) == 6 * made.model.layer_count
    assert kinds(target)["DynamicQuantizeLinear"] == kinds(target)["MatMulInteger"] == 0
    graph = onnx.load(str(target)).graph
    restored = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    readers = [n.op_type for n in graph.node for name in n.input if name in restored]
    assert len(readers) >= 2 * len(done)
    rounded_tensors = {n.output[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    assert len(rounded_tensors) == 4 * made.model.layer_count
    again = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in rounded_tensors}
    assert {n.op_type for n in graph.node for name in n.input if name in again} <= {"MatMul", "Gemm"}
    assert 0 < difference(made, source, target) < 0.2


def test_a_percentile_range_lies_inside_the_range_of_all_values(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    import compile.graph.quantization as module

    monkeypatch.setattr(module, "_FAR_SHARE", 0.01)  # of few texts, the usual share is less than one value
    ranges = [
        calibrate(made.source, made.context.train, made.batches(), made.context.pad, percentile)
        for percentile in (False, True)
    ]
    assert ranges[0].keys() == ranges[1].keys()
    assert all(ranges[0][n][0] <= ranges[1][n][0] < ranges[1][n][1] <= ranges[0][n][1] for n in ranges[0])
    assert any(ranges[1][name][1] < ranges[0][name][1] for name in ranges[0])


@pytest.mark.parametrize("form", FORMS)
def test_4_bit_graphs_keep_the_head_and_what_is_named(made: Made, tmp_path: Path, form: str) -> None:
    source, target = made.form(form), tmp_path / "4bit.onnx"
    head = head_nodes(source)
    kept = matmuls(onnx.load(str(source)))[0].name
    done = quantize_4bit(source, target, [*head, kept], False)
    assert kinds(target)["MatMulNBits"] == len(done) == 6 * made.model.layer_count - 1
    assert 0 < difference(made, source, target) < 0.6


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_graphs_are_sound_half_as_large_and_answer_in_single(
    made: Made, tmp_path: Path, form: str
) -> None:
    source, target = made.form(form), tmp_path / "half.onnx"
    to_fp16(source, target, [])
    model = onnx.load(str(target))
    onnx.checker.check_model(model)
    halves = [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT16]
    assert len(halves) >= 6 * made.model.layer_count
    assert not [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT and len(i.dims) > 1]
    assert [o.type.tensor_type.elem_type for o in model.graph.output] == [onnx.TensorProto.FLOAT]
    assert 0 < difference(made, source, target) < 0.02


def test_4_bit_rounding_is_nil_on_its_grid_and_coarser_than_8_bits_off_it() -> None:
    values = np.random.default_rng(0).normal(size=(20, 40)).astype(np.float32)
    grid = np.tile(np.array([[8.0], [-3.0], [0.0], [1.0]], dtype=np.float32), (10, 3))
    assert rounding_error(values, [grid], weight_only_4bit=True) == pytest.approx(0, abs=1e-6)
    weight = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    assert rounding_error(values, [weight], weight_only_4bit=True) > 2 * rounding_error(values, [weight])


def test_sensitivity_in_4_bits_knows_the_blocks(made: Made, tmp_path: Path) -> None:
    """One far value in a block makes that block's other values coarse."""
    model = onnx.load(str(made.source))
    node = matmuls(model)[4]
    weight = next(i for i in model.graph.initializer if i.name == node.input[1])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[::32] *= 40
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, str(tmp_path / "far.onnx"))
    train, pad = made.context.train, made.context.pad
    before, after = (
        dict(by_sensitivity(path, train, range(16), pad, weight_only_4bit=True))[node.name]
        for path in (made.source, tmp_path / "far.onnx")
    )
    assert before > 0.01
    assert after != pytest.approx(before, rel=0.05)


def quantize(made: Made, work: Path, floor: float = 0.0, teacher: float | None = None, **settings: Any) -> Artifact:
    inputs = {"graph": made.graph}
    if teacher is not None:
        meta = {"validation_accuracy": teacher}
        inputs["teacher"] = Artifact("finetune", "teacher", f"teacher {teacher}", made.folder, meta)
    spec = QuantizeSpec.model_validate({"min_agreement": 0.8, **settings})
    return Runner(work, made.context).run("full", Quantize(spec, 7, False, 16, floor), inputs)


@pytest.mark.parametrize(
    ("method", "precision", "kind"),
    [
        ("dynamic", "int8", "MatMulInteger"),
        ("static", "int8", "QuantizeLinear"),
        ("weight_only_4bit", "int4", "MatMulNBits"),
        ("fp16", "fp16", "Cast"),
    ],
)
def test_every_method_passes_the_same_gates(made: Made, tmp_path: Path, method: str, precision: str, kind: str) -> None:
    done = quantize(made, tmp_path, method=method)
    assert (done.meta["method"], done.meta["precision"]) == (method, precision)
    assert kinds(done.path / FILE)[kind] > 0
    assert f"{precision} agreement, validation" in [gate["name"] for gate in done.meta["gates"]]
    assert 0.8 <= done.meta["validation_agreement"] <= 1
    assert sorted(path.name for path in done.path.iterdir()) == ["done.json", FILE]


def test_no_quantizing_keeps_the_graph_as_it_is(made: Made, tmp_path: Path) -> None:
    done = quantize(made, tmp_path, method="none")
    assert (done.path / FILE).read_bytes() == (made.graph.path / FILE).read_bytes()
    assert (done.meta["precision"], done.meta["validation_agreement"]) == ("fp32", 1.0)


def test_an_agreement_that_cannot_be_had_fails_the_pass_and_names_the_field(made: Made, tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="int4 agreement, validation") as failed:
        quantize(made, tmp_path, method="weight_only_4bit", max_fp32_matmuls=0, min_agreement=1.0)
    assert failed.value.misses


def test_a_missed_accuracy_floor_brings_products_back_to_fp32_one_by_one(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agreement asks for nothing here; accuracy in 4 bits is what falls short."""
    settings = {"method": "weight_only_4bit", "min_agreement": 0.5, "target_agreement": 0.5, "max_fp32_matmuls": 18}
    easy = quantize(made, tmp_path, 0.5, 1.0, **settings)
    reached = easy.meta["validation_accuracy"]
    assert len(easy.meta["trials"]) == 1
    assert reached < 1
    strict = quantize(made, tmp_path, (1 + reached) / 2, 1.0, **settings)
    assert strict.meta["validation_floor"] == pytest.approx((1 + reached) / 2)
    assert strict.meta["validation_accuracy"] >= strict.meta["validation_floor"]
    counts = [len(trial["fp32_products"]) for trial in strict.meta["trials"]]
    assert counts == list(range(len(counts)))
    assert strict.meta["fp32_products"] == strict.meta["trials"][-1]["fp32_products"] != []


def test_a_floor_that_fp32_itself_misses_asks_for_no_more_than_fp32_reaches(made: Made, tmp_path: Path) -> None:
    assert quantize(made, tmp_path, 1.0, 2.0, method="fp16").meta["validation_floor"] == 1.0
    assert quantize(made, tmp_path, 0.9, method="fp16").meta["validation_floor"] == pytest.approx(0.9)


def test_calibration_texts_are_bounded_in_number_and_in_tokens(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    import compile.passes.quantize as module

    rows = [
        row
        for batch in Quantize(QuantizeSpec(calibration_texts=20), 7, False, 16)._calibration_batches(made.context)
        for row in batch
    ]
    assert len(set(rows)) == 20
    assert max(rows) > 20
    monkeypatch.setattr(module, "_CALIBRATION_TOKENS", 40)
    rows = [row for batch in Quantize(QuantizeSpec(), 7, False, 16)._calibration_batches(made.context) for row in batch]
    assert 0 < made.context.train.lengths[rows].sum() <= 40


def test_rounding_keeps_what_is_on_the_grid_and_lets_slopes_through() -> None:
    values = torch.tensor([[-1.0, 0.0, 0.5, 254.0]], requires_grad=True)
    made = round_activations(values)
    assert made.tolist() == [[-1.0, 0.0, 0.0, 254.0]]
    made.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0] * 4]
    assert round_weights(torch.tensor([[127.0, 1.4], [0.127, 0.001]]), 0).flatten().tolist() == pytest.approx(
        [127, 1, 0.127, 0.001]
    )
    assert round_weights(torch.tensor([[127.0, 0.127], [1.4, 0.001]]), 1).flatten().tolist() == pytest.approx(
        [127, 0.127, 1, 0.001]
    )


def test_a_rounded_model_answers_as_the_int8_file_does_and_is_whole_again_afterwards(
    made: Made, tmp_path: Path
) -> None:
    save(made.model, tmp_path)
    model = load(tmp_path)
    assert len(projections(model)) == 6 * model.layer_count
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arrays = sample_inputs(1, 12, made.context, np.random.default_rng(5))  # no padding: its range counts too
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.inference_mode():
        exact = model(**tensors)[0]
        with rounded(model):
            coarse = model(**tensors)[0]
        again = model(**tensors)[0]
    assert torch.equal(exact, again)
    assert not torch.equal(exact, coarse)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    done = quantize(made, tmp_path / "work", method="dynamic", target_agreement=0.5)
    int8 = open_session(done.path / FILE).run(["logits"], arrays)[0]
    assert np.abs(coarse.numpy() - int8).max() < 0.35 * np.abs(exact.numpy() - int8).max() + 1e-3


def test_training_with_rounding_brings_the_rounded_answers_to_the_teachers(made: Made, tmp_path: Path) -> None:
    """A model whose answers are the same in fp32, with a channel before each output projection that reaches far."""
    save(made.model, tmp_path / "model")
    model = load(tmp_path / "model")
    with torch.no_grad():
        for layer in model.layers:
            value, output = layer.attention.self.value, layer.attention.output.dense
            value.weight[0] *= 200
            value.bias[0] *= 200
            output.weight[:, 0] /= 200
    save(model, tmp_path / "model")
    student = Artifact("finetune", "teacher", "student", tmp_path / "model", {"layers": 3})
    runner = Runner(tmp_path / "work", made.context)
    lessons = runner.run("teacher", Teach(), {"teacher": student})
    spec = QatSpec(steps=60, batch_rows=16, learning_rate=1e-3, hard_weight=0.0)
    done = runner.run("full", Qat(spec, 1), {"student": student, "lessons": lessons})
    assert sorted(path.name for path in done.path.iterdir()) == ["config.json", "done.json", "model.safetensors"]
    assert done.meta["losses"][-1] < 0.7 * done.meta["losses"][0]
    assert done.meta["agreement_before"] < done.meta["agreement_after"]
    assert load(done.path).state_dict().keys() == model.state_dict().keys()
    again = Runner(tmp_path / "again", made.context)
    other = again.run("full", Qat(spec, 1), {"student": student, "lessons": lessons})
    assert (done.path / "model.safetensors").read_bytes() == (other.path / "model.safetensors").read_bytes()


def test_steps_are_made_of_as_many_rows_as_they_need() -> None:
    rows, epochs = Qat(QatSpec(steps=10, batch_rows=16), 0)._rows(1000)
    assert (len(set(rows)), epochs) == (160, 1)
    rows, epochs = Qat(QatSpec(steps=300, batch_rows=32), 0)._rows(1000)
    assert (len(rows), epochs) == (960, 10)


def test_a_graph_in_which_nothing_was_quantized_fails_the_gate_though_it_agrees(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import compile.passes.quantize as module

    def copied(source: Path, target: Path, *_: Any, **__: Any) -> list[str]:
        target.write_bytes(source.read_bytes())
        return ["a", "b"]

    monkeypatch.setattr(module, "quantize_int8", copied)
    with pytest.raises(GateFailed, match="products in fewer bits 0, must be >= 2"):
        quantize(made, tmp_path)
