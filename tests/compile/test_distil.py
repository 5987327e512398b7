"""A student learns answers, token vectors and relations; what the teacher thought is worked out once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

torch = pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")

from compile.artifact import Artifact  # noqa: E402
from compile.bases import find_base  # noqa: E402
from compile.checkpoint import from_base, load, save  # noqa: E402
from compile.data.dataset import Dataset, Split  # noqa: E402
from compile.errors import RequirementFailed, StorageError  # noqa: E402
from compile.model import Classifier  # noqa: E402
from compile.passes.base import Context  # noqa: E402
from compile.passes.distil import Distil  # noqa: E402
from compile.passes.teach import Teach  # noqa: E402
from compile.runner import Runner  # noqa: E402
from compile.specs.distil import DistilSpec  # noqa: E402
from compile.surgery import cut  # noqa: E402
from compile.teaching import (  # noqa: E402
    STATES,
    Watch,
    answer_loss,
    hidden_distance,
    keep_states,
    relation_divergence,
    relation_parts,
)

REAL = torch.tensor([[True, True, True, False], [True, True, True, True]])


def vectors(width: int, seed: int = 0) -> Any:
    return torch.randn(2, 4, width, generator=torch.Generator().manual_seed(seed))


def test_equal_states_and_relations_are_no_distance_apart() -> None:
    assert float(hidden_distance(vectors(8), vectors(8), REAL)) == 0
    assert float(relation_divergence(vectors(8), vectors(8), REAL, 4)) == pytest.approx(0, abs=1e-7)


def test_neither_loss_looks_at_padding() -> None:
    wild = vectors(8)
    wild[0, 3] = 1e3
    other = vectors(8, 1)
    assert float(hidden_distance(wild, other, REAL)) == float(hidden_distance(vectors(8), other, REAL))
    both = [float(relation_divergence(one, other, REAL, 2)) for one in (wild, vectors(8))]
    assert both[0] == pytest.approx(both[1])
    assert float(relation_divergence(other, wild, REAL, 2)) < 1e3


def test_a_channel_that_reaches_far_does_not_own_the_hidden_distance() -> None:
    one, other = vectors(64), vectors(64, 1)
    assert 1 < float(hidden_distance(one * 100 + 7, other, REAL)) < 3


def test_relations_of_students_with_fewer_heads_are_compared() -> None:
    assert relation_parts(160, 384, 12) == 8
    assert relation_parts(32, 48, 12) == 8
    assert relation_parts(7, 48, 12) == 1
    assert 0 < float(relation_divergence(vectors(4), vectors(8, 1), REAL, 4)) < 10


def test_relations_follow_the_scalar_products() -> None:
    """Two parts of width 1, two tokens: the softmax by hand."""
    theirs, own = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[1.0, 1.0], [1.0, 1.0]]])
    expected = []
    for token, part in ((0, 0), (0, 1), (1, 0), (1, 1)):
        wanted = torch.softmax(theirs[0, token, part] * theirs[0, :, part], 0)
        made = torch.softmax(own[0, token, part] * own[0, :, part], 0)
        expected.append((wanted * (wanted / made).log()).sum())
    real = torch.ones(1, 2, dtype=torch.bool)
    assert float(relation_divergence(own, theirs, real, 2)) == pytest.approx(float(sum(expected) / 4), rel=1e-5)


def test_real_labels_are_learned_by_squared_difference() -> None:
    made, wanted, truth = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]]), torch.tensor([0.0, 2.0])
    assert float(answer_loss(made, wanted, truth, 2.0, 1.0, 0.5)) == pytest.approx(2.0 + 0.5 * 0.5)


@pytest.mark.parametrize("pairs", [[], [[0, 1], [0, 2]], [[-1, 0]], "even"])
def test_a_layer_map_names_each_layer_of_the_student_at_most_once(pairs: Any) -> None:
    with pytest.raises(ValidationError):
        DistilSpec.model_validate({"layer_map": pairs})


def test_a_uniform_map_spreads_the_student_over_the_teacher() -> None:
    a_pass = Distil(DistilSpec(hidden_weight=1), 0)
    assert a_pass.layer_map(3, 6) == [(0, 1), (1, 3), (2, 5)]
    assert a_pass.layer_map(2, 2) == [(0, 0), (1, 1)]


@dataclass(frozen=True)
class School:
    context: Context
    teacher: Artifact
    student: Artifact
    lessons: Artifact
    runner: Runner

    def teach(self, work: Path, **settings: Any) -> Artifact:
        given = {"epochs": 6, "learning_rate": 3e-3, "batch_rows": 16, **settings}
        inputs = {"student": self.student, "lessons": self.lessons, "teacher": self.teacher}
        return Runner(work, self.context).run("lite", Distil(DistilSpec.model_validate(given), 3), inputs)

    def watched(self, model: Classifier, layers: list[int], rows: list[int]) -> Watch:
        from compile.training import to_tensors

        watch = Watch(model, layers, model.layer_count - 1)
        with torch.inference_mode():
            model(**to_tensors(self.context.train, rows, self.context.pad))
        return watch


def saved(model: Classifier, folder: Path, name: str) -> Artifact:
    save(model, folder / name)
    return Artifact("made", name, name, folder / name, {"layers": model.layer_count})


@pytest.fixture(scope="module")
def school(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> School:
    """A random teacher, and a student of one layer less whose last layer has one head of two."""
    folder = tmp_path_factory.mktemp("school")
    words = ("refund", "cancel", "late", "card", "order", "money")
    places = [(a, b, c) for a in range(6) for b in range(6) for c in range(6)]
    texts = tuple(f"{words[a]} {words[b]}" + f" now the {words[c]}" * (a % 2) for a, b, c in places)
    split = Split(texts, np.array([a % 3 for a, _, _ in places], dtype=np.int64))
    context = Context(Dataset("d", ("a", "b", "c"), split, split, split), find_base(str(tiny_base)), 0, 1, 32, 16)
    torch.manual_seed(4)
    model = from_base(context.base, "mean", 3)
    with torch.no_grad():
        for parameter in model.layers.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    teacher = saved(model, folder, "teacher")
    model.keep_layers([0, 2])
    cut(model, [[0, 1], [1]], [list(range(64)), list(range(48))])
    student = saved(model, folder, "student")
    runner = Runner(folder / "work", context)
    return School(context, teacher, student, runner.run("teacher", Teach(), {"teacher": teacher}), runner)


def test_a_watch_sees_what_layers_put_out_in_the_order_asked(school: School) -> None:
    model = load(school.teacher.path)
    watch = school.watched(model, [2, 0, 2], [0, 1])
    assert torch.equal(watch.hidden[0], watch.hidden[2])
    assert not torch.equal(watch.hidden[0], watch.hidden[1])
    assert [part.shape[-1] for part in watch.relations] == [32, 32, 32]
    assert [part.shape[-1] for part in school.watched(load(school.student.path), [], [0]).relations] == [16, 16, 16]


def test_kept_states_are_those_of_the_teacher_and_real_tokens_only(school: School, tmp_path: Path) -> None:
    model = load(school.teacher.path)
    rows = [5, 0, 41]
    states = keep_states(
        model, Watch(model, [1], 2), school.context.train, school.context.pad, tmp_path, lambda share, note: None
    )
    given, real = states.of(rows)
    seen = school.watched(load(school.teacher.path), [1], rows).seen
    assert real.sum(1).tolist() == school.context.train.lengths[rows].tolist()
    assert len(given) == len(seen) == 4
    for kept, exact in zip(given, seen, strict=True):
        assert kept[real].numpy() == pytest.approx(exact[real].numpy(), rel=2e-3, abs=2e-3)
        assert float(kept[~real].abs().sum()) == 0


def test_states_found_from_a_killed_run_are_used_again_and_broken_ones_are_not(school: School, tmp_path: Path) -> None:
    calls: list[float] = []

    def keep() -> None:
        model = load(school.teacher.path)
        watch = Watch(model, [1], None)
        train, pad = school.context.train, school.context.pad
        keep_states(model, watch, train, pad, tmp_path, lambda share, note: calls.append(share))

    keep()
    worked = len(calls)
    assert worked > 0
    keep()
    assert len(calls) == worked
    np.save(tmp_path / STATES, np.zeros((3, 2), dtype=np.float16))
    keep()
    assert len(calls) == 2 * worked


def test_no_room_on_the_disk_is_refused_with_the_remedy(
    school: School, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(StorageError, match=r"token vectors take .* Remedy: .*hidden_weight and relation_weight"):
        school.teach(tmp_path, hidden_weight=1.0)


def test_each_inner_loss_brings_the_student_nearer_in_what_it_compares(school: School, tmp_path: Path) -> None:
    rows = list(range(24))
    wanted = school.watched(load(school.teacher.path), [1, 2], rows)
    lengths = torch.from_numpy(school.context.train.lengths[rows])
    real = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]

    def distances(folder: Path) -> tuple[float, float]:
        made = school.watched(load(folder), [0, 1], rows)
        hidden = sum(hidden_distance(one, two, real) for one, two in zip(made.hidden, wanted.hidden, strict=True))
        pairs = zip(made.relations, wanted.relations, strict=True)
        return float(hidden), float(sum(relation_divergence(one, two, real, 2) for one, two in pairs))

    only = {"soft_weight": 0, "pooled_weight": 0}
    before = distances(school.student.path)
    hidden = distances(school.teach(tmp_path / "h", **only, hidden_weight=1.0).path)
    related = distances(school.teach(tmp_path / "r", **only, relation_weight=1.0).path)
    assert hidden[0] < 0.9 * before[0]
    assert related[1] < 0.9 * before[1]


def test_all_losses_together_leave_a_model_and_no_states_behind(school: School, tmp_path: Path) -> None:
    made = school.teach(tmp_path, hidden_weight=0.5, relation_weight=0.5, layer_map=[[1, 2]])
    assert sorted(path.name for path in made.path.iterdir()) == ["config.json", "done.json", "model.safetensors"]
    assert made.meta["losses"][-1] < made.meta["losses"][0]


@pytest.mark.parametrize("pairs", [[[2, 0]], [[0, 3]]])
def test_a_layer_map_of_layers_that_are_not_there_is_refused(school: School, tmp_path: Path, pairs: Any) -> None:
    with pytest.raises(RequirementFailed, match=r"layer_map: .* has [23]"):
        school.teach(tmp_path, hidden_weight=1.0, layer_map=pairs)


def test_training_in_half_the_bits_learns_as_well_and_leaves_float32_weights(school: School, tmp_path: Path) -> None:
    whole, half = (
        school.teach(tmp_path / precision, precision=precision, hidden_weight=0.5, relation_weight=0.5)
        for precision in ("float32", "bfloat16")
    )
    assert half.meta["losses"][-1] < half.meta["losses"][0]
    assert half.meta["losses"] != whole.meta["losses"]
    assert half.meta["losses"] == pytest.approx(whole.meta["losses"], rel=0.1)
    assert {parameter.dtype for parameter in load(half.path).parameters()} == {torch.float32}


def test_a_student_without_layers_cannot_learn_hidden_states(school: School, tmp_path: Path) -> None:
    bag = Artifact("drop_layers", "bag", "bag", school.student.path, {"layers": 0})
    with pytest.raises(RequirementFailed, match="the student has no layers"):
        Distil(DistilSpec(hidden_weight=1.0), 0).requires({"student": bag, "teacher": school.teacher}, school.context)
