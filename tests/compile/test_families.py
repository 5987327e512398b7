"""Every family in the table goes the whole way: found, loaded, shortened, cut, exported, rounded to int8."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
onnx = pytest.importorskip("onnx")
transformers = pytest.importorskip("transformers")

from compile.bases import Base, ScratchBase, find_base  # noqa: E402
from compile.checkpoint import from_base, load, save  # noqa: E402
from compile.data.dataset import Dataset, Split  # noqa: E402
from compile.errors import BaseError  # noqa: E402
from compile.families import FAMILIES, family_of  # noqa: E402
from compile.families.table import present  # noqa: E402
from compile.graph.forms import export_form  # noqa: E402
from compile.graph.quantization import head_nodes, quantize_int8  # noqa: E402
from compile.graph.sessions import open_session  # noqa: E402
from compile.graph.smoothing import smooth  # noqa: E402
from compile.measure.size import macs  # noqa: E402
from compile.model import Classifier  # noqa: E402
from compile.passes.base import Context  # noqa: E402
from compile.passes.export import largest_difference, masked_row_infinities, sample_inputs  # noqa: E402
from compile.scratch import fill  # noqa: E402
from compile.surgery import cut  # noqa: E402

LAYERS, HEADS, UNITS, POSITIONS = 3, 4, 48, 32
GATED_T5 = "t5 gated"
KINDS = [*sorted(FAMILIES), GATED_T5]
POOLINGS = [(name, pooling) for name in sorted(FAMILIES) for pooling in FAMILIES[name].poolings]
WITH_LANGUAGE_HEAD = {
    "bert": "BertForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "gpt2": "GPT2LMHeadModel",
    "opt": "OPTForCausalLM",
    "t5": "T5ForConditionalGeneration",
}


@dataclass(frozen=True)
class Given:
    context: Context
    folder: Path

    def model(self, pooling: str | None = None) -> Classifier:
        """The same stirred weights at every call: norms and biases of a fresh model are all alike."""
        base = self.context.base
        torch.manual_seed(1)
        model = from_base(base, pooling or family_of(base.model_type).poolings[0], 3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()


def context_of(base: Base, pair: bool = False) -> Context:
    texts = tuple(f"please refund the {word} now" for word in ("parcel", "card", "money", "account")) * 8
    second = tuple("it was late" for _ in texts) if pair else None
    split = Split(texts, np.arange(len(texts), dtype=np.int64) % 3, second)
    return Context(Dataset("d", ("a", "b", "c"), split, split, split), base, 0, 1, POSITIONS, 16)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For models this small a second thread is in the way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bases(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    made = {}
    for kind in KINDS:
        spec = ScratchBase(
            scratch=kind.split()[0],
            layers=LAYERS,
            hidden=32,
            heads=HEADS,
            units=UNITS,
            positions=POSITIONS,
            tokenizer=str(tiny_base),
        )
        base = find_base(spec, 5, tmp_path_factory.mktemp("bases"))
        if kind == GATED_T5:
            base.config["feed_forward_proj"] = "gated-gelu"  # type: ignore[index]
        fill(base)
        made[kind] = find_base(str(base.path))
    return made


@pytest.fixture
def given(request: pytest.FixtureRequest, bases: dict[str, Base], tmp_path: Path) -> Given:
    return Given(context_of(bases[request.param]), tmp_path)


def every_family(kinds: list[str] = KINDS) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("given", kinds, indirect=True)


def logits(model: Classifier, context: Context) -> Any:
    arrays = sample_inputs(4, 9, context, np.random.default_rng(2))
    with torch.inference_mode():
        return model(**{name: torch.from_numpy(array) for name, array in arrays.items()})[0]


@every_family()
def test_the_table_names_what_the_layers_hold(given: Given) -> None:
    model, family = given.model(), family_of(given.context.base.model_type)
    assert family.head_size(given.context.base.config) == 8
    for layer in model.layers:
        for wanted, width in ((family.heads, HEADS * 8), (family.units, UNITS)):
            found = present(layer, wanted)
            assert found[-1][0] is wanted[-1]
            assert not found[-1][0].makes
            assert all(one.makes for one, _ in found[:-1])
            assert all(module.weight.shape[one.axis] == width * one.parts for one, module in found)
        inside = {id(p) for _, module in present(layer, (*family.heads, *family.units)) for p in module.parameters()}
        large = {id(p) for name, p in layer.named_parameters() if p.ndim == 2 and "relative" not in name}
        assert large <= inside
        attention = layer.get_submodule(family.attention)
        assert all(getattr(attention, name) == HEADS for name in family.head_counts)
        assert all(getattr(attention, name) == HEADS * 8 for name in family.head_widths)


@every_family()
def test_it_reads_back_as_saved_and_answers_after_losing_layers(given: Given) -> None:
    model, context = given.model(), given.context
    save(model, given.folder / "whole")
    again = load(given.folder / "whole")
    assert torch.equal(logits(again, context), logits(model, context))
    again.keep_layers([1, 2])
    short = logits(again, context)
    save(again, given.folder / "short")
    assert torch.equal(logits(load(given.folder / "short"), context), short)
    assert not torch.allclose(short, logits(model, context), atol=1e-3)
    kept = model.layers[2].state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in again.layers[1].state_dict().items())


@every_family(["t5"])
def test_the_shared_position_bias_survives_the_first_layer(given: Given) -> None:
    model = given.model()
    before = model.layers[0].get_submodule("layer.0.SelfAttention.relative_attention_bias").weight.detach().clone()
    model.keep_layers([2])
    after = model.layers[0].get_submodule("layer.0.SelfAttention.relative_attention_bias").weight
    assert torch.equal(before, after)


@every_family()
def test_only_what_comes_before_is_seen_by_a_decoder(given: Given) -> None:
    model, family = given.model(), family_of(given.context.base.model_type)
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    states = model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert torch.equal(states[0, 0], states[1, 0]) == family.causal


@every_family()
def test_without_dropout_training_answers_as_evaluation(given: Given) -> None:
    model = given.model()
    expected = logits(model, given.context)
    model.train()
    assert not torch.equal(logits(model, given.context), expected)
    model.set_dropout(0.0)
    assert torch.allclose(logits(model, given.context), expected, atol=1e-6)


@every_family()
def test_frozen_embeddings_take_no_gradient_and_layers_do(given: Given) -> None:
    model = given.model()
    model.freeze(embeddings=True, layers=1)
    words = model.encoder.get_input_embeddings().weight
    tables = [p for name, p in model.encoder.named_parameters() if "position_emb" in name or "wpe" in name]
    assert not any(p.requires_grad for p in (words, *tables, *model.layers[0].parameters()))
    assert all(p.requires_grad for p in model.layers[1].parameters())


@every_family()
def test_the_longest_text_is_the_one_that_the_table_promises(given: Given) -> None:
    model, family, base = given.model(), family_of(given.context.base.model_type), given.context.base
    assert family.position_limit(base.config) == POSITIONS
    pad = int(base.config["pad_token_id"])
    longest = torch.full((1, POSITIONS), pad + 5)
    assert torch.isfinite(model(longest, torch.ones_like(longest))[0]).all()
    if family.position_limit_key is not None:
        longer = torch.full((1, POSITIONS + 1), pad + 5)
        with pytest.raises((IndexError, RuntimeError)):
            model(longer, torch.ones_like(longer))


@pytest.mark.parametrize(("name", "pooling"), POOLINGS)
@pytest.mark.parametrize("form", ["torchscript", "ragged"])
def test_the_graph_answers_as_torch(bases: dict[str, Base], tmp_path: Path, name: str, pooling: str, form: str) -> None:
    given = Given(context_of(bases[name]), tmp_path)
    model, path = given.model(pooling), tmp_path / "graph.onnx"
    before = logits(model, given.context)
    export_form(model, form, False, 18, path)
    assert largest_difference(model, path, given.context) <= 1e-4
    assert masked_row_infinities(path, given.context) == 0
    assert torch.equal(logits(model, given.context), before)
    arrays = sample_inputs(3, 9, given.context, np.random.default_rng(4))
    wider = {key: np.pad(array, ((0, 0), (0, 7))) for key, array in arrays.items()}
    session = open_session(path)
    assert session.run(["logits"], arrays)[0] == pytest.approx(session.run(["logits"], wider)[0], abs=1e-5)


@every_family(["gpt2", "t5"])
def test_an_attention_node_masks_later_tokens_and_takes_a_position_bias(given: Given) -> None:
    model, path = given.model(), given.folder / "graph.onnx"
    model.keep_layers([1])
    cut(model, [[0, 1, 3]], [range(9)])
    export_form(model, "mha", False, 18, path)
    assert [node.op_type for node in onnx.load(str(path)).graph.node].count("MultiHeadAttention") == 1
    assert largest_difference(model, path, given.context) <= 1e-4
    assert masked_row_infinities(path, given.context) == 0


@pytest.mark.parametrize(
    ("given", "form"),
    [*((kind, "torchscript") for kind in KINDS), ("gpt2", "ragged"), ("t5", "ragged")],
    indirect=["given"],
)
def test_a_model_cut_to_uneven_layers_is_exported(given: Given, form: str) -> None:
    model, path = given.model(), given.folder / "graph.onnx"
    whole = macs(model, 10)
    cut(model, [[0, 3], [1], [0, 1, 2]], [range(0, 48, 2), range(9), range(48)])
    export_form(model, form, False, 18, path)
    assert largest_difference(model, path, given.context) <= 1e-4
    products = (2 if given.context.base.config.get("feed_forward_proj") != "gated-gelu" else 3) * 32
    fewer = 10 * (4 * 32 * 8 * (12 - 6) + products * (3 * 48 - 24 - 9 - 48)) + 2 * 100 * 8 * (12 - 6)
    assert whole - macs(model, 10) == fewer


@every_family(sorted(FAMILIES))
@pytest.mark.parametrize("form", ["torchscript", "ragged"])
def test_a_model_without_layers_is_exported(given: Given, form: str) -> None:
    model, path = given.model(), given.folder / "graph.onnx"
    model.keep_layers([])
    export_form(model, form, False, 18, path)
    assert largest_difference(model, path, given.context) <= 1e-4
    assert masked_row_infinities(path, given.context) == 0


@every_family()
def test_every_product_but_the_head_becomes_int8(given: Given) -> None:
    model, family, context = given.model(), family_of(given.context.base.model_type), given.context
    fp32, smoothed, int8 = (given.folder / f"{name}.onnx" for name in ("fp32", "smoothed", "int8"))
    export_form(model, "torchscript", False, 18, fp32)
    head = head_nodes(fp32)
    smooth(fp32, smoothed, context.train, [range(16)], context.pad)
    done = quantize_int8(smoothed, int8, head, reduce_range=False, embeddings=True)
    expected = sum(len(present(layer, (*family.heads, *family.units))) for layer in model.layers)
    assert len(done) == expected
    assert [node.op_type for node in onnx.load(str(int8)).graph.node].count("MatMulInteger") == expected
    arrays = sample_inputs(6, 11, context, np.random.default_rng(6))
    exact, rounded = (open_session(path).run(["logits"], arrays)[0] for path in (fp32, int8))
    assert np.abs(exact - rounded).max() <= 0.1 * np.abs(exact).max()


@every_family(sorted(FAMILIES))
def test_a_pair_is_joined_by_the_tokenizers_template(given: Given) -> None:
    base = given.context.base
    context, types = context_of(base, pair=True), family_of(base.model_type).token_types
    assert context.input_names == ("input_ids", "attention_mask", *(["token_type_ids"] if types else []))
    assert (context.train.types is not None) == types
    assert context.train.ids[0].count(3) == 2
    model, path = given.model(), given.folder / "pair.onnx"
    export_form(model, "torchscript", True, 18, path)
    assert [one.name for one in open_session(path).get_inputs()] == list(context.input_names)
    assert largest_difference(model, path, context) <= 1e-4


@every_family(sorted(FAMILIES))
def test_a_pooling_that_says_nothing_of_the_text_is_refused(given: Given) -> None:
    base = given.context.base
    for pooling in {"mean", "cls", "last"} - set(family_of(base.model_type).poolings):
        with pytest.raises(BaseError, match=f"'{pooling}' says nothing .* use one of .*mean"):
            from_base(base, pooling, 2)


@every_family(sorted(FAMILIES))
def test_weights_under_a_language_head_are_found(given: Given) -> None:
    """A hub's folder holds the encoder under a prefix, beside weights that are of no use here."""
    base, folder = given.context.base, given.folder
    config = transformers.AutoConfig.for_model(**{**base.config, "num_labels": 2})
    whole = getattr(transformers, WITH_LANGUAGE_HEAD[base.model_type])(config)
    whole.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(base.tokenizer.read_bytes())
    model = from_base(find_base(str(folder)), "mean", 2)
    ours = model.encoder.get_input_embeddings().weight
    assert torch.equal(ours, whole.get_input_embeddings().weight)
    theirs = dict(whole.named_parameters())
    for name, parameter in model.layers.named_parameters():
        assert any(key.endswith(f"{family_of(base.model_type).layers}.{name}") for key in theirs), name
        found = next(key for key in theirs if key.endswith(f"{family_of(base.model_type).layers}.{name}"))
        assert torch.equal(parameter, theirs[found])


@every_family(["bert", "t5"])
def test_missing_and_misshapen_weights_are_refused_by_name(given: Given) -> None:
    from safetensors.torch import load_file, save_file

    base, folder = given.context.base, given.folder
    tensors = load_file(str(base.path / "model.safetensors"))
    gone = next(name for name in tensors if ".1." in name)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((base.path / name).read_bytes())
    save_file({name: t for name, t in tensors.items() if name != gone}, str(folder / "model.safetensors"))
    with pytest.raises(BaseError, match="lacks the weights"):
        from_base(find_base(str(folder)), "mean", 2)
    save_file({**tensors, gone: tensors[gone][:-1].clone()}, str(folder / "model.safetensors"))
    with pytest.raises(BaseError, match=r"must fit its config\.json"):
        from_base(find_base(str(folder)), "mean", 2)


@every_family(["bert"])
def test_names_of_older_files_are_understood(given: Given) -> None:
    """Norms were once called gamma and beta."""
    from safetensors.torch import load_file, save_file

    base, folder = given.context.base, given.folder
    tensors = load_file(str(base.path / "model.safetensors"))
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in tensors.items():
        stem, tail = name.rsplit(".", 2)[0], ".".join(name.rsplit(".", 2)[1:])
        renamed[f"bert.{stem}.{old.get(tail, tail)}"] = tensor + (1.0 if tail in old else 0.0)
    save_file(renamed, str(folder / "model.safetensors"), {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(base.config)))
    (folder / "tokenizer.json").write_bytes(base.tokenizer.read_bytes())
    made = from_base(find_base(str(folder)), "mean", 2).encoder.state_dict()
    assert all(torch.equal(made[n], t + (1.0 if "LayerNorm" in n else 0.0)) for n, t in tensors.items())
