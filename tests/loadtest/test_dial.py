"""What `make bench-dial` makes of its measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadtest.dial import Measured, Pass, cascade_line, judge, labelled, table, to_dict
from models.manifest import Manifest, OperatingPoint
from models.store import Store
from tests.support.tiny_family import CASCADE, publish_tiny_family


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return publish_tiny_family(Store(tmp_path / "store"), threshold=0.6).manifest


def once(manifest: Manifest, place: int, accuracy: float, cpu: float, joules: float | None = None) -> Measured:
    return Measured(manifest.points[place], [one_pass(accuracy, cpu, joules)])


def one_pass(accuracy: float, cpu: float, joules: float | None = None, offset: int = 0) -> Pass:
    """Of 1,000 texts the first ones were answered rightly, or as many others from `offset` on."""
    right = [((place - offset) % 1000) < round(1000 * accuracy) for place in range(1000)]
    return Pass(accuracy, cpu, joules, 0.1, 10.0, 0, 1000, 0, tuple(right))


def test_accuracy_is_kept_down_to_the_manifest_s_bound_and_what_sampling_explains(manifest: Manifest) -> None:
    full = once(manifest, 0, 0.97, 4)
    lower = manifest.points[0].accuracy_lower
    assert judge(once(manifest, 0, lower - 0.005, 4), full, None).accuracy_kept
    assert not judge(once(manifest, 0, lower - 0.05, 4), full, None).accuracy_kept


def with_joules(manifest: Manifest, tokenizing: float | None, alone: float | None) -> OperatingPoint:
    cpu = manifest.points[0].cpu_seconds_per_1k
    return manifest.points[0].model_copy(
        update={
            "joules_per_1k": 2 * cpu,
            "tokenizing_cpu_seconds_per_1k": tokenizing,
            "alone_cpu_seconds_per_1k": alone,
        }
    )


def kept(point: OperatingPoint, joules: float | None, uncertainty: float | None) -> bool | None:
    measured = Measured(point, [one_pass(0.97, 4, joules)])
    return judge(measured, measured, uncertainty).joules_kept


def test_joules_lie_between_full_batches_and_single_texts_within_the_meter_s_uncertainty(manifest: Manifest) -> None:
    cpu = manifest.points[0].cpu_seconds_per_1k
    point = with_joules(manifest, tokenizing=1.0, alone=3 * cpu)
    least, most = 2 * (cpu + 1), 2 * 3 * cpu
    assert [kept(point, joules, 0.1) for joules in (least, most, 0.91 * least, 1.09 * most)] == [True] * 4
    assert [kept(point, joules, 0.1) for joules in (0.89 * least, 1.11 * most)] == [False] * 2


def test_joules_are_unjudged_where_anything_about_them_was_not_measured(manifest: Manifest) -> None:
    cpu = manifest.points[0].cpu_seconds_per_1k
    whole = with_joules(manifest, 1.0, 3 * cpu)
    assert kept(whole, 4 * cpu, None) is None
    assert kept(whole, None, 0.5) is None
    assert kept(with_joules(manifest, None, 3 * cpu), 4 * cpu, 0.5) is None
    assert kept(with_joules(manifest, 1.0, None), 4 * cpu, 0.5) is None


@pytest.mark.parametrize(
    ("accuracy", "cpu", "said"),
    [(0.965, 2.0, "50.0% of its CPU-seconds, end to end; at most 60% is asked: met"), (0.965, 3.0, "missed")],
)
def test_the_cascade_is_judged_end_to_end(manifest: Manifest, accuracy: float, cpu: float, said: str) -> None:
    found = [once(manifest, 0, 0.97, 4), once(manifest, 1, accuracy, cpu)]
    assert cascade_line(manifest, found).startswith(CASCADE)
    assert said in cascade_line(manifest, found)


def test_a_cascade_that_loses_too_much_is_none(manifest: Manifest) -> None:
    found = [once(manifest, 0, 0.97, 4), once(manifest, 1, 0.9, 1)]
    assert "target missed" in cascade_line(manifest, found)
    assert cascade_line(manifest, found[:1]) == "the family has no cascade"


def test_a_cascade_that_errs_on_other_texts_is_less_sure_than_one_that_errs_on_the_same(manifest: Manifest) -> None:
    full = once(manifest, 0, 0.97, 4)
    same, other = (Measured(manifest.points[1], [one_pass(0.965, 2, offset=offset)]) for offset in (0, 300))
    verdicts = [judge(one, full, None) for one in (same, other)]
    assert verdicts[0].relative_accuracy == verdicts[1].relative_accuracy
    assert 0.99 < verdicts[0].relative_accuracy_lower < verdicts[0].relative_accuracy
    assert verdicts[1].relative_accuracy_lower < 0.99
    assert cascade_line(manifest, [full, same]).endswith("50.0% of its CPU-seconds keeps it by its lower bound")
    assert cascade_line(manifest, [full, other]).endswith("none keeps it by its lower bound")


def test_passes_over_a_text_are_no_further_texts(manifest: Manifest) -> None:
    full, once_more = (Measured(manifest.points[0], [one_pass(0.97, 4)] * times) for times in (1, 9))
    cascade = once(manifest, 1, 0.96, 2)
    bounds = {judge(cascade, one, None).relative_accuracy_lower for one in (full, once_more)}
    assert len(bounds) == 1


def test_the_table_and_the_json_hold_every_point(manifest: Manifest) -> None:
    found = [once(manifest, place, 0.97 - place / 100, 4.0 - place) for place in range(len(manifest.points))]
    assert table(manifest, found).row_count == len(manifest.points)
    tree: dict[str, Any] = to_dict(manifest, found, "how it was made")
    assert tree["command"] == "how it was made"
    assert [point["manifest"]["name"] for point in tree["points"]] == [point.name for point in manifest.points]


def test_labels_are_names_or_places(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("text,label\none,card\ntwo,1\n")
    assert [(q.text, q.label) for q in labelled(file, ("card", "refund"), None)] == [("one", "card"), ("two", "refund")]
    assert len(labelled(file, ("card", "refund"), 1)) == 1
    for content, said in (
        ("text,label\none,loan\n", "row 1"),
        ("text\none\n", "columns"),
        ("text,label\n", "no texts"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=said):
            labelled(file, ("card", "refund"), None)
