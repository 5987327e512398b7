"""Which layers stay is measured, recorded and the same at every run."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from compile.divergence import agreement, candidates, divergence, evaluations, evenly_spaced, greedily, top_dropped
from compile.specs.layers import DropLayersSpec

Place = tuple[Any, Any]
LOGITS = np.random.default_rng(0).normal(0, 2, (40, 5)).astype(np.float32)


def test_a_model_does_not_diverge_from_itself_nor_by_a_constant_added_to_its_logits() -> None:
    assert divergence(LOGITS, LOGITS, 2.0) == pytest.approx(0, abs=1e-9)
    assert divergence(LOGITS, LOGITS + 3, 2.0) == pytest.approx(0, abs=1e-6)


def test_divergence_is_the_textbook_sum() -> None:
    wanted, made = np.array([[0.25, 0.75]]), np.array([[0.5, 0.5]])
    expected = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    logits = (np.log(one).astype(np.float32) * 2 for one in (wanted, made))
    assert divergence(*logits, temperature=2.0) == pytest.approx(expected, rel=1e-5)


@given(st.floats(0.01, 1.0), st.floats(1.1, 5.0))
def test_divergence_grows_with_the_disturbance(small: float, factor: float) -> None:
    noise = np.random.default_rng(1).normal(size=LOGITS.shape).astype(np.float32)
    assert divergence(LOGITS, LOGITS + small * noise, 2.0) < divergence(LOGITS, LOGITS + factor * small * noise, 2.0)


def test_numbers_that_are_not_finite_diverge_without_end() -> None:
    broken = LOGITS.copy()
    broken[3, 1] = np.nan
    assert divergence(LOGITS, broken, 1.0) == np.inf


def test_one_output_is_compared_by_squared_difference() -> None:
    wanted = LOGITS[:, :1]
    assert divergence(wanted, wanted + wanted.std(), 1.0) == pytest.approx(1.0, rel=1e-4)
    assert agreement(wanted, wanted + 0.04 * wanted.std()) == 1.0
    assert agreement(wanted, wanted + 0.06 * wanted.std()) == 0.0


def test_agreement_counts_equal_labels() -> None:
    other = LOGITS.copy()
    other[:10] = -other[:10]
    assert agreement(LOGITS, other) == 0.75


@given(st.integers(1, 24).flatmap(lambda have: st.tuples(st.just(have), st.integers(1, have))))
def test_every_choice_keeps_as_many_rising_layers_as_asked(sizes: tuple[int, int]) -> None:
    have, keep = sizes
    ways = [top_dropped(have, keep), evenly_spaced(have, keep), greedily(have, keep, lambda kept: -float(sum(kept)))]
    for kept in ways:
        assert len(kept) == keep
        assert list(kept) == sorted(set(kept))
        assert set(kept) <= set(range(have))
    assert evenly_spaced(have, keep)[-1] == have - 1


def test_half_of_the_layers_evenly_spaced_are_every_second_one() -> None:
    assert evenly_spaced(6, 3) == (1, 3, 5)
    assert evenly_spaced(12, 4) == (2, 5, 8, 11)


def test_greedy_drops_what_is_missed_least_and_scores_as_often_as_announced() -> None:
    worth = (5.0, 1.0, 9.0, 2.0, 7.0)
    asked: list[tuple[int, ...]] = []

    def missed(kept: tuple[int, ...]) -> float:
        asked.append(kept)
        return sum(worth) - sum(worth[i] for i in kept)

    assert greedily(5, 2, missed) == (2, 4)
    assert len(asked) == evaluations(5, 2, ["greedy"]) == 5 + 4 + 3


def test_greedy_among_equals_drops_the_later_layer() -> None:
    assert greedily(4, 2, lambda kept: 0.0) == (0, 1)


def test_a_set_of_layers_is_scored_once_however_many_ways_lead_to_it() -> None:
    asked: list[tuple[int, ...]] = []

    def score(kept: tuple[int, ...]) -> float:
        asked.append(kept)
        return float(sum(kept))

    found = candidates(4, 2, ("top", "alternate", "greedy"), score)
    assert [(one.choice, one.layers) for one in found] == [("top", (0, 1)), ("alternate", (1, 3)), ("greedy", (0, 1))]
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    "settings",
    [{}, {"layers": [0], "keep": 1}, {"layers": [1, 0]}, {"layers": [-1]}, {"keep": -1}, {"keep": 2, "choose": "best"}],
)
def test_a_spec_names_layers_or_a_number_of_them_and_nothing_else(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DropLayersSpec.model_validate(settings)


@pytest.fixture(scope="module")
def place(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model whose middle layer does nothing, and its context."""
    torch = pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
    from compile.artifact import Artifact
    from compile.bases import find_base
    from compile.checkpoint import from_base, save
    from compile.data.dataset import Dataset, Split
    from compile.passes.base import Context

    ways = product(("refund", "cancel", "late"), ("my", "the"), ("card", "order"))
    texts = tuple(" ".join(way) for way in ways)
    split = Split(texts * 4, np.arange(len(texts) * 4, dtype=np.int64) % 3)
    context = Context(Dataset("d", ("a", "b", "c"), split, split, split), find_base(str(tiny_base)), 0, 1, 32, 16)
    torch.manual_seed(2)
    model = from_base(context.base, "mean", 3).eval()
    with torch.no_grad():
        for at in (0, 2):  # layers that do much
            for parameter in model.layers[at].parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8)
        for name, parameter in model.layers[1].named_parameters():
            if "LayerNorm" not in name:
                parameter.zero_()
    folder = tmp_path_factory.mktemp("teacher")
    save(model, folder)
    return context, Artifact("finetune", "teacher", str(folder), folder, {"layers": 3})


def drop(place: Place, work: Path, **settings: Any) -> Any:
    from compile.passes.drop_layers import DropLayers
    from compile.runner import Runner

    spec = DropLayersSpec.model_validate(settings)
    return Runner(work, place[0]).run("lite", DropLayers(spec, 5), {"teacher": place[1]})


def test_the_layer_that_does_nothing_is_the_one_to_go(place: Place, tmp_path: Path) -> None:
    made = drop(place, tmp_path, keep=2, samples=16)
    assert made.meta["kept"] == [0, 2]
    assert [one["choice"] for one in made.meta["candidates"]] == ["top", "alternate", "greedy"]
    least = min(one["divergence"] for one in made.meta["candidates"])
    chosen = [one for one in made.meta["candidates"] if list(one["layers"]) == [0, 2]]
    assert chosen[0]["divergence"] == least < 0.01


def test_it_is_the_same_at_every_run(place: Place, tmp_path: Path) -> None:
    one, two = (drop(place, tmp_path / name, keep=1, samples=16) for name in ("one", "two"))
    assert one.meta == two.meta
    assert (one.path / "model.safetensors").read_bytes() == (two.path / "model.safetensors").read_bytes()


def test_a_choice_that_is_named_is_taken(place: Place, tmp_path: Path) -> None:
    assert drop(place, tmp_path, keep=2, choose="top").meta["kept"] == [0, 1]


def test_named_layers_need_no_measuring(place: Place, tmp_path: Path) -> None:
    made = drop(place, tmp_path, layers=[1])
    assert (made.meta["kept"], made.meta["candidates"], made.meta["layers"]) == ([1], [], 1)


@pytest.mark.parametrize("settings", [{"layers": []}, {"keep": 0}])
def test_without_layers_a_text_is_the_mean_of_its_embeddings(
    place: Place, tmp_path: Path, settings: dict[str, Any]
) -> None:
    from compile.checkpoint import load

    made = drop(place, tmp_path, **settings)
    assert (made.meta["kept"], made.meta["layers"], load(made.path).layer_count) == ([], 0, 0)


@pytest.mark.parametrize("settings", [{"layers": [0, 3]}, {"keep": 4}])
def test_more_layers_than_there_are_cannot_stay(place: Place, tmp_path: Path, settings: dict[str, Any]) -> None:
    from compile.errors import RequirementFailed

    with pytest.raises(RequirementFailed, match="the base has 3"):
        drop(place, tmp_path, **settings)
