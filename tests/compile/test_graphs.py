"""Exported graphs answer as torch does, in every form; gates notice when they do not."""

from __future__ import annotations

import dataclasses
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
from compile.graph.embeddings import quantize_tables  # noqa: E402
from compile.graph.forms import export_form  # noqa: E402
from compile.graph.quantization import by_sensitivity, head_nodes, quantize_int8  # noqa: E402
from compile.graph.sessions import fresh_process_difference, open_session  # noqa: E402
from compile.graph.smoothing import matmuls, rounding_error, smooth  # noqa: E402
from compile.model import Classifier  # noqa: E402
from compile.passes.base import Context  # noqa: E402
from compile.passes.export import FILE, Export, largest_difference, masked_row_infinities, sample_inputs  # noqa: E402
from compile.runner import Runner  # noqa: E402

FORMS = ("torchscript", "dynamo", "mha", "ragged")


@dataclass(frozen=True)
class Exported:
    context: Context
    model: Classifier
    files: dict[str, Path]


def context_of(base: Path, pair: bool) -> Context:
    texts = tuple(f"please refund the {word} now" for word in ("parcel", "card", "money", "account")) * 8
    second = tuple("it was late" for _ in texts) if pair else None
    split = Split(texts, np.arange(len(texts), dtype=np.int64) % 3, second)
    return Context(Dataset("d", ("a", "b", "c"), split, split, split), find_base(str(base)), 0, 1, 32, 16)


def export_all(base: Path, folder: Path, pair: bool) -> Exported:
    torch.manual_seed(1)
    context = context_of(base, pair)
    model = from_base(context.base, "mean", 3).eval()
    files = {form: folder / f"{form}.onnx" for form in FORMS}
    for form, path in files.items():
        export_form(model, form, pair, 18, path)
    return Exported(context, model, files)


@pytest.fixture(scope="module")
def exported(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_all(tiny_base, tmp_path_factory.mktemp("single"), pair=False)


@pytest.fixture(scope="module")
def exported_pair(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_all(tiny_base, tmp_path_factory.mktemp("pair"), pair=True)


def assert_contract_and_answers(exported: Exported, form: str, names: list[str]) -> None:
    session = open_session(exported.files[form])
    assert [i.name for i in session.get_inputs()] == names
    assert [o.name for o in session.get_outputs()] == ["logits"]
    assert all(isinstance(axis, str) for i in session.get_inputs() for axis in i.shape)
    assert largest_difference(exported.model, exported.files[form], exported.context) <= 1e-5
    assert masked_row_infinities(exported.files[form], exported.context) == 0


@pytest.mark.parametrize("form", FORMS)
def test_every_form_keeps_the_contract_and_matches_torch(exported: Exported, form: str) -> None:
    assert_contract_and_answers(exported, form, ["input_ids", "attention_mask"])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_takes_pairs(exported_pair: Exported, form: str) -> None:
    assert_contract_and_answers(exported_pair, form, ["input_ids", "attention_mask", "token_type_ids"])


def test_the_mha_form_has_one_attention_node_a_layer(exported: Exported) -> None:
    kinds = [node.op_type for node in onnx.load(str(exported.files["mha"])).graph.node]
    assert kinds.count("MultiHeadAttention") == exported.model.layer_count


@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_no_answer(exported: Exported, form: str) -> None:
    session = open_session(exported.files[form])
    arrays = sample_inputs(3, 9, exported.context, np.random.default_rng(4))
    wider = {name: np.pad(array, ((0, 0), (0, 7))) for name, array in arrays.items()}
    assert session.run(["logits"], arrays)[0] == pytest.approx(session.run(["logits"], wider)[0], abs=1e-5)


def test_a_fresh_process_answers_the_same_and_a_broken_file_fails(exported: Exported, tmp_path: Path) -> None:
    sample = sample_inputs(2, 7, exported.context, np.random.default_rng(0))
    path = exported.files["torchscript"]
    assert fresh_process_difference(path, sample, tmp_path) <= 1e-6


def artifact(path: Path, **meta: Any) -> Artifact:
    return Artifact("made", "made", str(path), path, meta)


def test_the_export_gate_fails_when_a_weight_was_tampered_with(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import compile.passes.export as module

    save(exported.model, tmp_path / "model")

    def tampering(model: Classifier, form: str, pair: bool, opset: int, path: Path) -> None:
        export_form(model, form, pair, opset, path)
        graph = onnx.load(str(path))
        weight = next(i for i in graph.graph.initializer if i.name == matmuls(graph)[-1].input[1])
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[0] += 0.5
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(graph, str(path))

    inputs = {"model": artifact(tmp_path / "model"), "forms": artifact(tmp_path, ranking=["torchscript"])}
    runner = Runner(tmp_path / "work", exported.context)
    made = runner.run("full", Export(18), inputs)
    assert made.meta["form"] == "torchscript"
    assert made.meta["layers"] == 3
    monkeypatch.setattr(module, "export_form", tampering)
    with pytest.raises(GateFailed, match=r"full: pass 'export'.*largest difference from torch .* <= 0\.0001"):
        Runner(tmp_path / "other", exported.context).run("full", Export(18), inputs)


def test_the_next_form_is_taken_when_the_best_cannot_be_exported(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import compile.passes.export as module

    def refusing(model: Classifier, form: str, pair: bool, opset: int, path: Path) -> None:
        if form == "mha":
            raise RuntimeError("no such operator")
        export_form(model, form, pair, opset, path)

    save(exported.model, tmp_path / "model")
    monkeypatch.setattr(module, "export_form", refusing)
    inputs = {"model": artifact(tmp_path / "model"), "forms": artifact(tmp_path, ranking=["mha", "torchscript"])}
    made = Runner(tmp_path / "work", exported.context).run("full", Export(18), inputs)
    assert made.meta["form"] == "torchscript"
    assert "no such operator" in made.meta["tried"]["mha"]


def test_a_model_is_read_back_as_it_was_saved(exported: Exported, tmp_path: Path) -> None:
    save(exported.model, tmp_path)
    again = load(tmp_path)
    assert (again.pooling, again.labels, again.layer_count) == ("mean", 3, 3)
    for one, other in zip(exported.model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_dropping_layers_keeps_the_named_ones_in_order(exported: Exported, tmp_path: Path) -> None:
    save(exported.model, tmp_path)
    short = load(tmp_path)
    short.keep_layers([0, 2])
    assert short.layer_count == 2
    wanted = exported.model.layers[2].state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in short.layers[1].state_dict().items())
    save(short, tmp_path / "short")
    assert load(tmp_path / "short").layer_count == 2


@pytest.mark.parametrize("form", ["torchscript", "mha", "ragged"])
def test_int8_stays_close_keeps_the_head_and_is_smaller(exported: Exported, tmp_path: Path, form: str) -> None:
    source, target = exported.files[form], tmp_path / "int8.onnx"
    head = head_nodes(source)
    assert len(head) == 1
    done = quantize_int8(source, target, head, reduce_range=False, embeddings=True)
    assert len(done) == 6 * exported.model.layer_count
    kinds = [node.op_type for node in onnx.load(str(target)).graph.node]
    assert sum("MatMulInteger" in kind for kind in kinds) == len(done)
    arrays = sample_inputs(8, 12, exported.context, np.random.default_rng(5))
    exact, rounded = (open_session(path).run(["logits"], arrays)[0] for path in (source, target))
    assert 0 < np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max() + 0.05
    assert masked_row_infinities(target, exported.context) == 0


@pytest.mark.parametrize("form", ["torchscript", "mha", "ragged"])
def test_smoothing_changes_no_fp32_answer_and_lowers_the_rounding_error(
    exported: Exported, tmp_path: Path, form: str
) -> None:
    outlying = load_with_outliers(exported, tmp_path)
    source, target = tmp_path / "source.onnx", tmp_path / "smoothed.onnx"
    export_form(outlying, form, exported.context.dataset.pair, 18, source)
    context = exported.context
    done = smooth(source, target, context.train, [list(range(16))], context.pad)
    assert len(done) >= outlying.layer_count
    assert all(one.error_after < one.error_before for one in done)
    arrays = sample_inputs(6, 11, context, np.random.default_rng(6))
    exact, moved = (open_session(path).run(["logits"], arrays)[0] for path in (source, target))
    assert exact == pytest.approx(moved, abs=1e-4)
    before = sum(error for _, error in by_sensitivity(source, context.train, list(range(16)), context.pad))
    after = sum(error for _, error in by_sensitivity(target, context.train, list(range(16)), context.pad))
    assert after < before


def load_with_outliers(exported: Exported, folder: Path) -> Classifier:
    """The model with one channel of every layer norm reaching far, as trained models have."""
    save(exported.model, folder / "outlying")
    model = load(folder / "outlying")
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter[3] = 30.0
    return model


def test_the_padding_tokens_own_vector_does_not_reach_the_exported_graph(exported: Exported, tmp_path: Path) -> None:
    """A wild padding vector changes no fp32 answer, and must not set the 8-bit range either."""
    save(exported.model, tmp_path / "model")
    wild = load(tmp_path / "model")
    with torch.no_grad():
        wild.encoder.get_input_embeddings().weight[0] = 50.0
    save(wild, tmp_path / "wild")
    forms = artifact(tmp_path, ranking=["torchscript"])
    digests = set()
    for name in ("model", "wild"):
        made = Runner(tmp_path / "work", exported.context).run(
            "full", Export(18), {"model": artifact(tmp_path / name), "forms": forms}
        )
        digests.add((made.path / FILE).read_bytes())
    assert len(digests) == 1


def test_a_word_that_stands_in_for_padding_keeps_its_vector(exported: Exported, tmp_path: Path) -> None:
    """A vocabulary may have no padding token; the number used instead is then a word of some texts."""
    context = dataclasses.replace(exported.context)
    context.__dict__["pad"] = word = exported.context.train.ids[0][2]
    save(exported.model, tmp_path / "model")
    inputs = {"model": artifact(tmp_path / "model"), "forms": artifact(tmp_path, ranking=["torchscript"])}
    made = Runner(tmp_path / "work", context).run("full", Export(18), inputs)
    ids = np.array([[2, word, 3]])
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    answered = open_session(made.path / FILE).run(["logits"], arrays)[0]
    with torch.inference_mode():
        expected = exported.model(**{name: torch.from_numpy(array) for name, array in arrays.items()})[0].numpy()
    assert answered == pytest.approx(expected, abs=1e-5)


def test_embedding_rows_keep_their_own_scale() -> None:
    rows = np.array([[127.0, -64.0], [0.127, 0.001], [0.0, 0.0]], dtype=np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["table", "at"], ["out"], name="look", axis=0)],
        "g",
        [onnx.helper.make_tensor_value_info("at", onnx.TensorProto.INT64, ["n"])],
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(rows, "table")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    assert quantize_tables(model) == []
    assert quantize_tables(model, min_elements=1) == ["table"]
    made = open_session(model.SerializeToString()).run(["out"], {"at": np.array([2, 1, 0, 1])})[0]
    assert made == pytest.approx(rows[[2, 1, 0, 1]], rel=0, abs=0.0006)
    assert [i.data_type for i in model.graph.initializer if i.name == "table_rows"] == [onnx.TensorProto.INT8]


def test_rounding_error_is_nil_for_values_on_the_grid() -> None:
    values = np.array([[0.0, 255.0], [128.0, 1.0]], dtype=np.float32)
    weight = np.array([[127.0, 0.0], [-1.0, 127.0]], dtype=np.float32)
    assert rounding_error(values, [weight]) == pytest.approx(0, abs=1e-7)
    assert rounding_error(values + 0.4, [weight]) > 1e-4
