"""Projections are split where the pair is cheaper and keeps the outputs; a split model reads back as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")

from compile.artifact import Artifact  # noqa: E402
from compile.bases import find_base  # noqa: E402
from compile.checkpoint import from_base, load, save  # noqa: E402
from compile.data.dataset import Dataset, Split  # noqa: E402
from compile.factors import Factored, factored  # noqa: E402
from compile.measure.cpu import this_cpu  # noqa: E402
from compile.measure.size import macs  # noqa: E402
from compile.passes.base import Context  # noqa: E402
from compile.passes.low_rank import LowRank, _Prices  # noqa: E402
from compile.runner import Runner  # noqa: E402
from compile.specs.prune import LowRankSpec  # noqa: E402

FLAT = "output.dense"


@pytest.fixture
def context(tiny_base: Path) -> Context:
    texts = tuple(f"please refund the {word} now" for word in ("parcel", "card", "money", "account")) * 8
    split = Split(texts, np.arange(len(texts), dtype=np.int64) % 3)
    return Context(Dataset("d", ("a", "b", "c"), split, split, split), find_base(str(tiny_base)), 0, 1, 32, 16)


@pytest.fixture
def model(context: Context, tmp_path: Path) -> Artifact:
    """A model whose last layer's feed-forward output has rank 3."""
    torch.manual_seed(0)
    made = from_base(context.base, "mean", 3)
    with torch.no_grad():
        weight = made.layers[2].output.dense.weight
        weight.copy_(torch.randn(weight.shape[0], 3) @ torch.randn(3, weight.shape[1]))
    save(made, tmp_path / "model")
    return Artifact("finetune", "teacher", "teacher", tmp_path / "model", {"layers": 3})


def split_model(context: Context, model: Artifact, folder: Path, **spec: float) -> Artifact:
    a_pass = LowRank(LowRankSpec(samples=16, **spec), 7, this_cpu(), 8)
    return Runner(folder, context).run("lite", a_pass, {"model": model})


def test_a_projection_of_low_rank_is_split_and_answers_stay(
    context: Context, model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Prices, "share", lambda self, inputs, outputs, rank: 0.5 if rank == 16 < inputs else 2.0)
    made = split_model(context, model, tmp_path, energy=0.999)
    whole, split = load(model.path), load(made.path)
    row = next(row for row in made.meta["projections"] if (row["layer"], row["path"]) == (2, FLAT))
    assert (row["rank"], row["used"]) == (16, True)
    assert split.ranks[f"2.{FLAT}"] == 16
    assert isinstance(split.layers[2].output.dense, Factored)
    assert macs(split, 8.0) < macs(whole, 8.0)
    assert made.meta["validation_agreement"] > 0.9


def test_a_pair_that_is_not_cheaper_is_not_used(context: Context, model: Artifact, tmp_path: Path) -> None:
    made = split_model(context, model, tmp_path, cost_share=1e-6)
    assert not any(row["used"] for row in made.meta["projections"])
    assert len(made.meta["projections"]) == 3 * 6
    for old, new in zip(load(model.path).parameters(), load(made.path).parameters(), strict=True):
        assert torch.equal(old, new)


def test_prices_are_measured_and_a_pair_that_multiplies_more_is_not_tried(tmp_path: Path) -> None:
    prices = _Prices(64, False, tmp_path)
    first = prices.share(256, 256, 16)
    assert 0 < first < float("inf")
    assert prices.share(256, 256, 16) == first  # measured once, or the choice would waver
    assert prices.share(256, 256, 128) == float("inf")


def test_a_whole_basis_changes_nothing_but_rounding() -> None:
    torch.manual_seed(0)
    whole = torch.nn.Linear(12, 5)
    pair = factored(whole.weight.detach(), whole.bias.detach(), torch.eye(5, dtype=torch.float64))
    given = torch.randn(7, 12)
    assert torch.allclose(pair(given), whole(given), atol=1e-6)
    assert torch.allclose(pair.weight, whole.weight, atol=1e-6)
