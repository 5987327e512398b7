"""Output projections are fitted to the uncut model's outputs; what does not help is not kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
transformers = pytest.importorskip("transformers")

from compile.artifact import Artifact  # noqa: E402
from compile.bases import find_base  # noqa: E402
from compile.checkpoint import load, save  # noqa: E402
from compile.data.dataset import Dataset, Split  # noqa: E402
from compile.errors import RequirementFailed  # noqa: E402
from compile.families import FAMILIES, family_of  # noqa: E402
from compile.model import Classifier  # noqa: E402
from compile.passes.base import Context  # noqa: E402
from compile.passes.reconstruct import Reconstruct, fit  # noqa: E402
from compile.replay import Replay  # noqa: E402
from compile.runner import Runner  # noqa: E402
from compile.specs.prune import ReconstructSpec  # noqa: E402
from compile.surgery import cut, output_projections  # noqa: E402
from compile.text import Encoded, sorted_batches  # noqa: E402
from compile.training import to_tensors  # noqa: E402

LAYERS, HEADS, UNITS = 2, 4, 32


@pytest.fixture(scope="module")
def context(tiny_base: Path) -> Context:
    words = ("parcel", "card", "money", "account", "password", "order")
    texts = tuple(f"{words[at % 6]} {'please now ' * (at % 4)}refund {words[at % 5]}" for at in range(80))
    split = Split(texts, np.arange(80, dtype=np.int64) % 3)
    return Context(Dataset("d", ("a", "b", "c"), split, split, split), find_base(str(tiny_base)), 0, 1, 32, 16)


def small(model_type: str) -> Classifier:
    family = family_of(model_type)
    sizes = {
        family.layer_count_key: LAYERS,
        family.hidden_size_key: 24,
        family.heads_key: HEADS,
        family.units_key: UNITS,
        "vocab_size": 60,
    }
    if model_type == "opt":
        sizes["word_embed_proj_dim"] = 24
    if family.head_size_key is not None:
        sizes[family.head_size_key] = 6
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    config._attn_implementation, config.use_cache = "sdpa", False
    torch.manual_seed(0)
    model = Classifier(family, config, "mean", 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def saved(model: Classifier, folder: Path) -> Artifact:
    save(model, folder)
    return Artifact("made", "made", str(folder), folder, {"layers": model.layer_count})


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_cut_model_comes_nearer_to_the_uncut_one_without_training(
    model_type: str, context: Context, tmp_path: Path
) -> None:
    uncut = saved(small(model_type), tmp_path / "uncut")
    model = small(model_type)
    cut(model, ((0, 2), (1, 2, 3)), (range(16), range(4, 28)))
    runner = Runner(tmp_path, context)
    inputs = {"model": saved(model, tmp_path / "cut"), "uncut": uncut}
    made = runner.run("lite", Reconstruct(ReconstructSpec(samples=64), 7), inputs)
    assert made.meta["divergence_after"] < 0.7 * made.meta["divergence_before"]
    assert all(fit["fitted"] for fit in made.meta["fits"])


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_layers_replayed_one_by_one_see_what_they_see_in_the_whole_model(model_type: str) -> None:
    model = small(model_type)
    encoded = Encoded(tuple(tuple(range(4, 4 + n)) for n in (3, 9, 5, 7)))
    last = output_projections(model)[-1].units
    seen: list[Any] = []
    hook = last.register_forward_hook(lambda module, args, made: seen.append(made))
    rows = next(iter(sorted_batches(encoded, 32)))
    with torch.no_grad():
        tensors = to_tensors(encoded, rows, 0)
        model(**tensors)
    hook.remove()
    replay = Replay(model, encoded, 0)
    for layer in range(LAYERS - 1):
        replay.advance(layer)
    found = next(iter(replay.outputs(LAYERS - 1, last)))
    real = tensors["attention_mask"].flatten().bool()
    assert found.shape == (3 + 9 + 5 + 7, 24)
    assert (found - seen[0].reshape(-1, 24)[real]).abs().max() <= 1e-6


def test_a_fit_finds_the_weights_that_made_the_outputs_and_says_the_error() -> None:
    torch.manual_seed(0)
    projection, truth = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)
    given = [torch.randn(50, 6) for _ in range(3)]
    with torch.no_grad():
        pairs = [(batch, truth(batch)) for batch in given]
        before = float(torch.cat([(projection(x) - y) for x, y in pairs]).square().mean())
    told = fit(projection, pairs, 1e-9)
    assert told[0] == pytest.approx(before, rel=1e-4)
    assert told[1] == pytest.approx(0, abs=1e-9)
    assert torch.allclose(projection.weight, truth.weight, atol=1e-4)
    assert torch.allclose(projection.bias, truth.bias, atol=1e-4)


def test_a_strong_pull_keeps_the_old_weights() -> None:
    projection = torch.nn.Linear(4, 2)
    old = projection.weight.detach().clone()
    fit(projection, [(torch.randn(30, 4), torch.randn(30, 2))], 1e6)
    assert torch.allclose(projection.weight, old, atol=1e-4)


def test_fits_that_make_answers_worse_are_not_kept(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import compile.passes.reconstruct as module

    def ruining(projection: Any, pairs: Any, ridge: float) -> tuple[float, float]:
        told = fit(projection, pairs, ridge)
        with torch.no_grad():
            projection.weight.mul_(-4.0)
        return told

    monkeypatch.setattr(module, "fit", ruining)
    uncut, model = small("bert"), small("bert")
    cut(model, (range(HEADS),) * LAYERS, (range(31), range(UNITS)))
    inputs = {"model": saved(model, tmp_path / "cut"), "uncut": saved(uncut, tmp_path / "uncut")}
    made = Runner(tmp_path, context).run("lite", Reconstruct(ReconstructSpec(samples=32), 7), inputs)
    assert [one["fitted"] for one in made.meta["fits"]] == [False, False]
    for old, new in zip(model.parameters(), load(made.path).parameters(), strict=True):
        assert torch.equal(old, new)


def test_models_with_other_layers_are_refused(context: Context, tmp_path: Path) -> None:
    uncut, model = small("bert"), small("bert")
    model.keep_layers([0])
    inputs = {"model": saved(model, tmp_path / "cut"), "uncut": saved(uncut, tmp_path / "uncut")}
    with pytest.raises(RequirementFailed, match="has 1 layers, the uncut one 2"):
        Runner(tmp_path, context).run("lite", Reconstruct(ReconstructSpec(), 7), inputs)
