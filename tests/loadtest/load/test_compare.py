"""Two runs: differences beyond their spread are named, smaller ones are not, and unlike runs are refused."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.load.compare import NotComparable, compare, failed_more, judge, load_run, same_parts

RECORDED = Path(__file__).parent / "recorded"


def run_of(joules: float, p99_ms: float, noise: float = 0.05, seed: int = 1, parts: int = 18) -> dict[str, Any]:
    chance = random.Random(seed)

    def near(value: float) -> float:
        return value * (1 + chance.uniform(-noise, noise))

    return {
        "plan": {"fingerprint": "f", "protocol": "HTTP", "requests": 7000},
        "energy": {"sources": ["estimated"]},
        "figures": {"sent": 7000, "answered": 7000},
        "slices": [
            {
                "from_s": 10.0 * part,
                "to_s": 10.0 * part + 10.0,
                "joules_per_answer": near(joules),
                "joules_per_answer_with_overhead": near(joules * 1.2),
                "p99_ms": near(p99_ms),
            }
            for part in range(parts)
        ],
    }


def words(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [verdict.word for verdict in compare(a, b)]


def test_a_fifth_less_is_seen_and_twice_the_latency_too() -> None:
    assert words(run_of(4e-3, 30), run_of(3.2e-3, 60, seed=2)) == ["less", "less", "more"]


def test_of_two_recorded_runs_only_what_leaves_their_spread_is_called_different() -> None:
    """`make load` and the same without Ray, on a machine that trainings held: their joules spread by half."""
    ray, edge = (load_run(RECORDED / name) for name in ("ray.json", "edge.json"))
    overhead = "joules an answer (with overhead)"
    assert {one.what: one.word for one in compare(ray, edge) if one.word != "no difference seen"} == {overhead: "less"}
    assert {one.what: one.word for one in compare(edge, ray) if one.word != "no difference seen"} == {overhead: "more"}
    assert {one.word for one in compare(ray, ray)} == {"no difference seen"}


def test_within_the_spread_no_difference_is_claimed() -> None:
    assert set(words(run_of(4e-3, 30, noise=0.3), run_of(4.04e-3, 30.5, noise=0.3, seed=2))) == {"no difference seen"}


def test_a_sure_but_tiny_difference_is_called_none() -> None:
    assert set(words(run_of(4e-3, 30, noise=0), run_of(4.04e-3, 30.1, noise=0))) == {"no difference seen"}


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=5, max_size=30))
def test_the_interval_holds_the_median_and_exchanging_the_runs_turns_it_over(pairs: list[tuple[float, float]]) -> None:
    there = judge("x", pairs)
    back = judge("x", [(b, a) for a, b in pairs])
    assert there.low <= there.ratio * (1 + 1e-9)
    assert there.ratio <= there.high * (1 + 1e-9)
    assert back.ratio == pytest.approx(1 / there.ratio)


@pytest.mark.parametrize(("field", "value"), [("fingerprint", "g"), ("protocol", "gRPC")])
def test_runs_that_asked_differently_are_refused(field: str, value: str) -> None:
    other = run_of(4e-3, 30)
    other["plan"][field] = value
    with pytest.raises(NotComparable, match=f"{field}: the runs did not ask the same"):
        compare(run_of(4e-3, 30), other)


def test_a_run_that_answers_less_is_not_taken_for_a_better_one(tmp_path: Path) -> None:
    a, b, unlucky = run_of(4e-3, 30), run_of(3.2e-3, 20), run_of(4e-3, 30)
    b["figures"]["answered"] = 5000
    unlucky["figures"]["answered"] = 6990
    assert failed_more(a, b)
    assert not failed_more(b, a)
    assert not failed_more(a, unlucky)
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path, run in zip(paths, (a, b), strict=True):
        path.write_text(json.dumps(run))
    command = [sys.executable, "-m", "loadtest.load", "compare", *map(str, paths)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == 1, said.stderr
    assert "failed: A 0.00%, B 28.57%" in said.stdout
    assert "failed requests: B more" in said.stdout


def test_parts_of_other_stretches_are_not_compared() -> None:
    a, b = run_of(4e-3, 30, noise=0), run_of(4e-3, 30, noise=0)
    for part in a["slices"][:9]:
        part["p99_ms"] = 300.0
    b["slices"] = [part | {"p99_ms": 300.0 if part["from_s"] < 90 else 30.0} for part in b["slices"]]
    del b["slices"][3]  # a reading was missing: the part before it goes on for twice as long
    b["slices"][2]["to_s"] = 40.0
    assert [(one["from_s"], other["from_s"]) for one, other in same_parts(a, b)] == [
        (at, at) for at in (10.0 * number for number in range(18)) if at not in (20.0, 30.0)
    ]
    assert words(a, b) == ["no difference seen"] * 3
    shorter = run_of(4e-3, 30, parts=36)
    for number, part in enumerate(shorter["slices"]):
        part["from_s"], part["to_s"] = 5.0 * number, 5.0 * number + 5
    with pytest.raises(NotComparable, match="same --slice"):
        compare(a, shorter)


@given(st.lists(st.floats(-0.2, 0.2), min_size=6, max_size=12))
def test_a_short_part_is_compared_with_its_counterpart_never_with_its_neighbour(jitter: list[float]) -> None:
    """The bounds of parts of one second come as early or late as the machine lets them."""
    bounds = [number + late for number, late in enumerate(jitter)]
    a = run_of(4e-3, 30, parts=len(bounds) - 1)
    for part, (since, until) in zip(a["slices"], itertools.pairwise(bounds), strict=True):
        part["from_s"], part["to_s"] = since, until
    b = a | {"slices": [part | {"p99_ms": 2 * part["p99_ms"]} for part in a["slices"]]}
    assert [other["p99_ms"] / one["p99_ms"] for one, other in same_parts(a, b)] == [2.0] * (len(bounds) - 1)


def test_a_run_that_lacks_what_is_compared_is_named(tmp_path: Path) -> None:
    run = run_of(4e-3, 30)
    del run["slices"][4]["p99_ms"]
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(NotComparable, match=r"is no run of loadtest.load \(KeyError\('p99_ms'\)\)"):
        load_run(tmp_path)


def test_joules_of_different_meters_are_not_compared() -> None:
    other = run_of(4e-3, 30)
    other["energy"]["sources"] = ["rapl"]
    with pytest.raises(NotComparable, match="different meters"):
        compare(run_of(4e-3, 30), other)


def test_too_short_runs_are_refused() -> None:
    with pytest.raises(NotComparable, match="run longer"):
        compare(run_of(4e-3, 30, parts=3), run_of(4e-3, 30, parts=3))


def test_a_run_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run_of(1, 1)))
    assert load_run(tmp_path)["plan"]["requests"] == 7000


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotComparable, match="does not exist"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(NotComparable, match="is no run"):
        load_run(tmp_path)
