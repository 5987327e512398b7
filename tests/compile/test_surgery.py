"""Heads and units are really cut: a sliced model answers as the whole one with zeros in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
transformers = pytest.importorskip("transformers")

from compile.checkpoint import load, save  # noqa: E402
from compile.families import FAMILIES, family_of  # noqa: E402
from compile.model import Classifier  # noqa: E402
from compile.surgery import Widths, compose, cut, gated, masks, output_projections, widths_of  # noqa: E402

HEADS, UNITS, LAYERS, LABELS = 4, 24, 3, 3
UNEVEN_HEADS = ((0, 3), (1,), (0, 1, 2))
UNEVEN_UNITS = (tuple(range(0, 24, 2)), tuple(range(5)), tuple(range(3, 24)))
GATED_T5 = "t5 gated"
KINDS = [*sorted(FAMILIES), GATED_T5]


def small(kind: str, seed: int = 0) -> Classifier:
    """A tiny random model of a family (`t5 gated`: with T5 v1.1's feed-forward), biases and norms stirred."""
    family = family_of(kind.split()[0])
    sizes = {
        family.layer_count_key: LAYERS,
        family.hidden_size_key: 32,
        family.heads_key: HEADS,
        family.units_key: UNITS,
        "vocab_size": 50,
    }
    if family.model_type == "opt":
        sizes["word_embed_proj_dim"] = 32
    if family.head_size_key is not None:
        sizes[family.head_size_key] = 6
    if kind == GATED_T5:
        sizes["feed_forward_proj"] = "gated-gelu"
    config = transformers.AutoConfig.for_model(family.model_type, **sizes)
    config._attn_implementation, config.use_cache = "sdpa", False
    torch.manual_seed(seed)
    model = Classifier(family, config, family.poolings[0], LABELS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def batch(rows: int = 5, tokens: int = 9) -> dict[str, Any]:
    ids = torch.randint(4, 50, (rows, tokens), generator=torch.Generator().manual_seed(3))
    lengths = torch.arange(tokens, tokens - rows, -1).clamp(min=2)
    mask = (torch.arange(tokens)[None] < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def answers(model: Classifier) -> Any:
    with torch.inference_mode():
        return model(**batch())[0]


def masked_answers(model: Classifier, heads: Sequence[Sequence[int]], units: Sequence[Sequence[int]]) -> Any:
    widths = widths_of(model)
    with gated(model, masks(heads, widths.heads), masks(units, widths.units)):
        return answers(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sliced_model_answers_as_the_masked_one_with_uneven_layers(kind: str) -> None:
    model = small(kind)
    whole, masked = answers(model), masked_answers(model, UNEVEN_HEADS, UNEVEN_UNITS)
    cut(model, UNEVEN_HEADS, UNEVEN_UNITS)
    assert widths_of(model) == Widths((2, 1, 3), (12, 5, 21))
    assert (answers(model) - masked).abs().max() <= 1e-5
    assert (masked - whole).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_model_is_smaller_and_reads_back_as_it_was_saved(kind: str, tmp_path: Path) -> None:
    model = small(kind)
    before = sum(p.numel() for p in model.layers.parameters())
    cut(model, UNEVEN_HEADS, UNEVEN_UNITS)
    assert sum(p.numel() for p in model.layers.parameters()) < 0.7 * before
    save(model, tmp_path)
    again = load(tmp_path)
    assert widths_of(again) == widths_of(model)
    assert torch.equal(answers(again), answers(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [(0, 2), (1, 2)])
def test_a_cut_model_can_still_lose_layers(kind: str, kept: tuple[int, ...], tmp_path: Path) -> None:
    first = small(kind)
    first.keep_layers(kept)
    cut(first, [UNEVEN_HEADS[i] for i in kept], [UNEVEN_UNITS[i] for i in kept])
    then = small(kind)
    cut(then, UNEVEN_HEADS, UNEVEN_UNITS)
    then.keep_layers(kept)
    assert (answers(first) - answers(then)).abs().max() <= 1e-6
    save(then, tmp_path)
    assert torch.equal(answers(load(tmp_path)), answers(then))


@pytest.mark.parametrize("kind", KINDS)
def test_two_cuts_in_a_row_are_one(kind: str) -> None:
    once, twice = small(kind), small(kind)
    then_heads, then_units = ((0,), (0,), (0, 2)), ((1, 5), (0, 2, 4), tuple(range(0, 21, 3)))
    cut(once, compose(UNEVEN_HEADS, then_heads), compose(UNEVEN_UNITS, then_units))
    cut(twice, UNEVEN_HEADS, UNEVEN_UNITS)
    cut(twice, then_heads, then_units)
    assert torch.equal(answers(once), answers(twice))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_model_learns_and_frozen_weights_stay_frozen(kind: str) -> None:
    model = small(kind)
    model.freeze(embeddings=True, layers=1)
    cut(model, UNEVEN_HEADS, UNEVEN_UNITS)
    assert not any(p.requires_grad for p in model.layers[0].parameters() if p.shape[-1] != HEADS)
    model(**batch())[0].square().sum().backward()
    outputs = output_projections(model)[1]
    assert outputs.heads.weight.grad.abs().sum() > 0
    assert outputs.units.weight.grad.shape == outputs.units.weight.shape


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_cut_of_a_fused_projection_equals_its_mask(data: st.DataObject) -> None:
    def subset(count: int) -> Callable[[], tuple[int, ...]]:
        drawn = st.sets(st.integers(0, count - 1), min_size=1)
        return lambda: tuple(sorted(data.draw(drawn)))

    heads, units = subset(HEADS), subset(UNITS)
    kept_heads, kept_units = [heads() for _ in range(LAYERS)], [units() for _ in range(LAYERS)]
    model = small("gpt2")
    masked = masked_answers(model, kept_heads, kept_units)
    cut(model, kept_heads, kept_units)
    assert (answers(model) - masked).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        (((0,), (0,)), "names 2 layers, the model has 3"),
        (((), (0,), (0,)), "layer 0 must keep rising indices of its 4, at least one"),
        (((0,), (1, 0), (0,)), "layer 1"),
        (((0,), (0,), (4,)), "layer 2"),
    ],
)
def test_a_cut_that_does_not_fit_is_refused_and_changes_nothing(heads: Any, words: str) -> None:
    model = small("bert")
    with pytest.raises(ValueError, match=f"kept_heads: .*{words}"):
        cut(model, heads, [range(UNITS)] * 3)
    assert widths_of(model) == Widths((HEADS,) * 3, (UNITS,) * 3)
    assert not model.is_cut


def test_gates_of_every_row_act_on_their_own_row() -> None:
    model = small("opt")
    widths = widths_of(model)
    gates = [torch.ones(5, count) for count in widths.units]
    gates[1][2] = 0.0
    with gated(model, [None] * LAYERS, gates):
        one_row = answers(model)
    changed = (one_row - answers(model)).abs().amax(1)
    assert changed[2] > 1e-4
    assert changed[[0, 1, 3, 4]].max() <= 1e-6
