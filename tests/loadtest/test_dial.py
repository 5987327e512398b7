"""What `make bench-dial` makes of its measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadtest.dial import Measured, Pass, cascade_line, judge, labelled, table, to_dict
from models.manifest import Manifest
from models.store import Store
from tests.support.tiny_family import CASCADE, publish_tiny_family


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return publish_tiny_family(Store(tmp_path / "store"), threshold=0.6).manifest


def once(manifest: Manifest, place: int, accuracy: float, cpu: float, joules: float | None = None) -> Measured:
    return Measured(manifest.points[place], [Pass(accuracy, cpu, joules, 10.0, 0, 1000, 0)])


def test_accuracy_is_kept_down_to_the_manifest_s_bound_and_what_sampling_explains(manifest: Manifest) -> None:
    full = once(manifest, 0, 0.97, 4)
    lower = manifest.points[0].accuracy_lower
    assert judge(once(manifest, 0, lower - 0.005, 4), full, None).accuracy_kept
    assert not judge(once(manifest, 0, lower - 0.05, 4), full, None).accuracy_kept


def test_joules_are_kept_within_the_meter_s_uncertainty_and_unjudged_where_unmeasured(manifest: Manifest) -> None:
    point = manifest.points[0].model_copy(update={"joules_per_1k": 10.0})
    full = Measured(point, [Pass(0.97, 4, 14.0, 10.0, 0, 1000, 0)])
    assert judge(full, full, 0.5).joules_kept is True
    assert judge(full, full, 0.3).joules_kept is False
    assert judge(full, full, None).joules_kept is None
    assert judge(Measured(point, [Pass(0.97, 4, None, 10.0, 0, 1000, 0)]), full, 0.5).joules_kept is None


@pytest.mark.parametrize(
    ("accuracy", "cpu", "said"),
    [(0.965, 2.0, "50% of its CPU-seconds, end to end; at most 60% is asked: met"), (0.965, 3.0, "missed")],
)
def test_the_cascade_is_judged_end_to_end(manifest: Manifest, accuracy: float, cpu: float, said: str) -> None:
    found = [once(manifest, 0, 0.97, 4), once(manifest, 1, accuracy, cpu)]
    assert cascade_line(manifest, found).startswith(CASCADE)
    assert said in cascade_line(manifest, found)


def test_a_cascade_that_loses_too_much_is_none(manifest: Manifest) -> None:
    found = [once(manifest, 0, 0.97, 4), once(manifest, 1, 0.9, 1)]
    assert "target missed" in cascade_line(manifest, found)
    assert cascade_line(manifest, found[:1]) == "the family has no cascade"


def test_the_table_and_the_json_hold_every_point(manifest: Manifest) -> None:
    found = [once(manifest, place, 0.97 - place / 100, 4.0 - place) for place in range(len(manifest.points))]
    assert table(manifest, found).row_count == len(manifest.points)
    tree: dict[str, Any] = to_dict(manifest, found)
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
