"""Scores are exact, the choice keeps its budget, and what comes out is smaller and answers as its mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

torch = pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")

from pydantic import ValidationError  # noqa: E402

from compile.artifact import Artifact  # noqa: E402
from compile.bases import find_base  # noqa: E402
from compile.checkpoint import from_base, load, save  # noqa: E402
from compile.data.dataset import Dataset, Split  # noqa: E402
from compile.errors import GateFailed, RequirementFailed  # noqa: E402
from compile.measure.widths import Costs, WidthTable, measured_counts, table_of  # noqa: E402
from compile.passes.base import Context  # noqa: E402
from compile.passes.prune_units import PruneUnits  # noqa: E402
from compile.passes.time_widths import TimeWidths  # noqa: E402
from compile.pruning import within_cost  # noqa: E402
from compile.runner import Runner  # noqa: E402
from compile.scoring import Gradients, gate_gradients, rearranged  # noqa: E402
from compile.specs.prune import PruneUnitsSpec  # noqa: E402
from compile.surgery import Widths, gated, widths_of  # noqa: E402

LAYERS, HEADS, UNITS = 3, 2, 64
EXPORT = {"form": "torchscript", "opset": 18, "reduce_range": False}
TABLE = WidthTable(0.1, 1.0, Costs((1, 2), (-0.2, 0.0)), Costs((16, 32, 64), (-0.5, -0.2, 0.0)))


def context_of(base: Path, labels: int = 3) -> Context:
    words = ("parcel", "card", "money", "account")
    texts = tuple(f"please {'now ' * (at % 5)}refund the {words[at % 4]}" for at in range(24))
    split = Split(texts, np.arange(24, dtype=np.int64) % labels)
    names = tuple("abc"[:labels])
    return Context(Dataset("d", names, split, split, split), find_base(str(base)), 0, 1, 32, 4)


@pytest.fixture(scope="module")
def context(tiny_base: Path) -> Context:
    return context_of(tiny_base)


@pytest.fixture(scope="module")
def teacher(context: Context, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(1)
    model = from_base(context.base, "mean", 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("teacher")
    save(model, folder)
    return Artifact("finetune", "teacher", "teacher", folder, {"layers": LAYERS})


def widths_artifact(table: WidthTable) -> Artifact:
    return Artifact("time_widths", "teacher", "table", Path(), {"table": table.to_plain(), "export": EXPORT})


def prune(context: Context, teacher: Artifact, folder: Path, **spec: Any) -> Artifact:
    settings = PruneUnitsSpec.model_validate({"samples": 16, "unit_group": 16, "rounds": 2, **spec})
    inputs = {"model": teacher} | ({"widths": widths_artifact(TABLE)} if settings.cost_share is not None else {})
    return Runner(folder, context).run("lite", PruneUnits(settings, 7), inputs)


@pytest.mark.parametrize("labels", [3, 1])
def test_each_text_scores_as_if_it_were_alone_and_as_differences_say(tiny_base: Path, labels: int) -> None:
    context = context_of(tiny_base, labels)
    torch.manual_seed(2)
    model = from_base(context.base, "mean", labels).eval()
    truth: Any = context.dataset.train.labels if labels > 1 else np.linspace(-2, 2, 24)
    found = gate_gradients(model, context.train, truth, context.pad)
    assert [layer.shape for layer in found.heads] == [(24, HEADS)] * LAYERS
    assert [layer.shape for layer in found.units] == [(24, UNITS)] * LAYERS

    def loss(row: int, head: float, unit: float) -> float:
        heads, units = torch.ones(HEADS).double(), torch.ones(UNITS).double()
        heads[1], units[5] = head, unit
        ids = torch.tensor([context.train.ids[row]])
        with gated(model, [None, heads, None], [None, units, None]), torch.inference_mode():
            logits = model(ids, torch.ones_like(ids))[0]
        if labels == 1:
            return float((logits[0, 0] - truth[row]) ** 2)
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(truth)[row : row + 1]))

    model.double()
    for row in (0, 11):
        step = 1e-4
        by_head = (loss(row, 1 + step, 1) - loss(row, 1 - step, 1)) / (2 * step)
        by_unit = (loss(row, 1, 1 + step) - loss(row, 1, 1 - step)) / (2 * step)
        assert found.heads[1][row, 1] == pytest.approx(by_head, rel=1e-3, abs=1e-6)
        assert found.units[1][row, 5] == pytest.approx(by_unit, rel=1e-3, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    gradients=npst.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 7)), elements=st.floats(-3, 3)),
    data=st.data(),
)
def test_swaps_keep_the_number_and_never_raise_the_predicted_loss(gradients: Any, data: st.DataObject) -> None:
    count = gradients.shape[1]
    kept = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))

    def rise(stays: Any) -> float:
        left_out = np.delete(gradients, list(stays), axis=1)
        return float(np.square(left_out.sum(1)).sum())

    after = rearranged(gradients, kept)
    assert len(after) == len(kept)
    assert list(after) == sorted(set(after))
    assert rise(after) <= rise(kept) + 1e-9


def test_two_units_that_undo_each_other_leave_together() -> None:
    gradients = np.array([[5.0, -5.0, 1.0, 1.0], [4.0, -4.0, 1.0, 1.0]])
    assert rearranged(gradients, (0, 2)) == (2, 3)


def random_gradients(seed: int = 0) -> Gradients:
    rng = np.random.default_rng(seed)
    heads, units = (tuple(rng.standard_normal((8, n)) for _ in range(LAYERS)) for n in (HEADS, UNITS))
    return Gradients(heads, units)


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.45, 1.0), seed=st.integers(0, 99))
def test_what_is_kept_costs_no_more_than_asked_and_comes_in_groups(share: float, seed: int) -> None:
    full = TABLE.seconds(Widths((HEADS,) * LAYERS, (UNITS,) * LAYERS))
    kept = within_cost(random_gradients(seed), TABLE, share * full, 16)
    widths = Widths(tuple(map(len, kept.heads)), tuple(map(len, kept.units)))
    assert TABLE.share(widths) <= share + 1e-9
    assert min(widths.heads) >= 1
    assert all(n % 16 == 0 for n in widths.units)


def test_a_budget_for_everything_keeps_everything() -> None:
    kept = within_cost(random_gradients(), TABLE, 3.1, 16)
    assert kept.heads == (tuple(range(HEADS)),) * LAYERS
    assert kept.units == (tuple(range(UNITS)),) * LAYERS


def test_units_worth_nothing_leave_first(context: Context, teacher: Artifact, tmp_path: Path) -> None:
    model = load(teacher.path)
    with torch.no_grad():
        model.layers[1].output.dense.weight[:, :32] = 0.0
    save(model, tmp_path / "idle")
    idle = Artifact("finetune", "teacher", "idle", tmp_path / "idle", {"layers": LAYERS})
    made = prune(context, idle, tmp_path, units=160 / 192)
    assert made.meta["units"] == [64, 32, 64]
    assert made.meta["kept_units"][1] == list(range(32, 64))
    assert made.meta["heads"] == [HEADS] * LAYERS


def test_the_pruned_model_is_narrower_and_meets_its_gates(context: Context, teacher: Artifact, tmp_path: Path) -> None:
    made = prune(context, teacher, tmp_path, cost_share=0.7)
    model = load(made.path)
    assert made.meta["predicted_cost_share"] <= 0.7
    assert made.meta["measured_cost_share"] > 0
    assert widths_of(model) == Widths(tuple(made.meta["heads"]), tuple(made.meta["units"]))
    assert sum(made.meta["units"]) < LAYERS * UNITS
    assert [gate["name"] for gate in made.meta["gates"]] == [
        "largest difference from the masked model",
        "predicted share of the uncut cost",
    ]


def test_shares_of_a_cut_model_count_from_full_width(context: Context, teacher: Artifact, tmp_path: Path) -> None:
    first = prune(context, teacher, tmp_path, units=0.75)
    then = prune(context, first, tmp_path, units=0.5, heads=0.67)
    assert sum(first.meta["units"]) == 0.75 * LAYERS * UNITS
    assert sum(then.meta["units"]) == 0.5 * LAYERS * UNITS
    assert sum(then.meta["heads"]) == 4


def test_the_gate_fails_when_a_slice_was_tampered_with(
    context: Context, teacher: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import compile.passes.prune_units as module

    real = module.cut

    def tampering(model: Any, heads: Any, units: Any) -> None:
        real(model, heads, units)
        model.layers[0].intermediate.dense.bias.data[0] += 0.5

    monkeypatch.setattr(module, "cut", tampering)
    with pytest.raises(GateFailed, match="largest difference from the masked model"):
        prune(context, teacher, tmp_path, units=0.5)


def test_what_cannot_be_had_is_refused_with_the_remedy(context: Context, teacher: Artifact, tmp_path: Path) -> None:
    with pytest.raises(RequirementFailed, match=r"no model is so small.*Remedy: ask for a larger share"):
        prune(context, teacher, tmp_path, cost_share=0.2)
    with pytest.raises(RequirementFailed, match="Remedy"):
        prune(context, teacher, tmp_path, units=0.1)
    with pytest.raises(RequirementFailed, match="run time_widths before"):
        Runner(tmp_path, context).run("x", PruneUnits(PruneUnitsSpec(cost_share=0.5), 7), {"model": teacher})


@pytest.mark.parametrize(
    "spec", [{}, {"cost_share": 0.5, "heads": 0.5}, {"cost_share": 0}, {"heads": 1.5}, {"units": 0.5, "rounds": 0}]
)
def test_a_spec_that_asks_for_nothing_or_for_two_things_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PruneUnitsSpec.model_validate(spec)


def test_layers_too_small_to_time_still_cost_something() -> None:
    one, two = Widths((2,), (32,)), Widths((2, 2), (32, 32))
    noise = {one: 1.2, two: 1.0, Widths((1, 1), (32, 32)): 0.1, Widths((2, 2), (16, 16)): 1.3}
    table = table_of(noise, one, 2, (1,), (16,))
    assert table.layer_seconds > 0
    assert table.seconds(two) == pytest.approx(1.0)
    assert 0 < table.seconds(Widths((1, 1), (32, 32))) < 1.0 < table.seconds(Widths((2, 2), (16, 16)))


def test_the_table_adds_up_what_was_measured() -> None:
    full = Widths((4,), (128,))
    seconds = {full: 1.5, Widths((4, 4), (128, 128)): 2.5, Widths((1, 1), (128, 128)): 1.9}
    seconds[Widths((4, 4), (32, 32))] = 1.5
    table = table_of(seconds, full, 2, (1,), (32,))
    assert (table.fixed_seconds, table.layer_seconds) == (0.5, 1.0)
    assert table.seconds(Widths((1, 4, 4), (128, 80, 32))) == pytest.approx(0.5 + 3 - 0.3 - 0.25 - 0.5)
    assert table.share(Widths((4, 4), (128, 128))) == 1.0
    assert WidthTable.from_plain(table.to_plain()) == table


@given(heads=st.integers(1, 32), units=st.integers(8, 8192))
def test_measured_counts_rise_and_stay_below_the_full_width(heads: int, units: int) -> None:
    for counts, full in zip(measured_counts(heads, units), (heads, units), strict=True):
        assert list(counts) == sorted(set(counts))
        assert all(0 < n < full for n in counts)


def test_a_table_is_measured_and_prunes_by_it(context: Context, teacher: Artifact, tmp_path: Path) -> None:
    forms = Artifact("probe_forms", "teacher", "forms", Path(), {"ranking": ["torchscript"]})
    runner = Runner(tmp_path, context)
    timed = runner.run("teacher", TimeWidths(18, False, 2, "cpu", 8), {"teacher": teacher, "forms": forms})
    table = WidthTable.from_plain(timed.meta["table"])
    assert (table.heads.counts, table.units.counts) == ((1, 2), (32, 64))
    assert table.layer_seconds > 0
    spec = PruneUnitsSpec(cost_share=1.0, samples=8, rounds=1)
    made = runner.run("lite", PruneUnits(spec, 7), {"model": teacher, "widths": timed})
    assert made.meta["predicted_cost_share"] <= 1.0
