"""What is measured in which order, and the texts it is measured with."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.bench.__main__ import options_of
from loadtest.bench.plan import (
    QUICK,
    REALISTIC,
    UNIFORM,
    Cell,
    Plan,
    cells,
    seconds_needed,
    times_s,
    turn_order,
    uniform_texts,
    weighted_draw,
)
from loadtest.bench.workloads import popularity, zipf


def test_uniform_lengths_are_asked_by_the_most_clients_only() -> None:
    assert cells(Plan(clients=(1, 16))) == [Cell(REALISTIC, 1), Cell(REALISTIC, 16), Cell(UNIFORM, 16)]


@given(st.integers(1, 8), st.integers(0, 3))
def test_over_as_many_rounds_as_contestants_everybody_has_every_turn_once(contestants: int, first: int) -> None:
    names = [f"n{number}" for number in range(contestants)]
    rounds = [turn_order(names, first + number) for number in range(contestants)]
    for turn in range(contestants):
        assert sorted(one[turn] for one in rounds) == sorted(names)


def test_the_default_plan_with_every_peer_takes_a_quarter_of_an_hour() -> None:
    assert 12 * 60 < seconds_needed(Plan(), contestants=7, ours=2) < 18 * 60
    assert seconds_needed(QUICK, contestants=1, ours=1) < 120


def test_every_part_of_the_plan_takes_time() -> None:
    plan = Plan()
    whole = seconds_needed(plan, 3, 2)
    for less in (
        replace(plan, rounds=2),
        replace(plan, clients=(1,)),
        replace(plan, rates_per_s=()),
        replace(plan, cache_rounds=1),
        replace(plan, idle_seconds=1),
    ):
        assert seconds_needed(less, 3, 2) < whole


@given(st.floats(0.5, 100), st.floats(0.5, 60), st.integers(0, 5))
def test_a_rate_gives_exactly_its_number_of_requests_within_the_time(rate: float, seconds: float, seed: int) -> None:
    times = times_s(rate, seconds, seed)
    assert len(times) == round(rate * seconds)
    assert times == sorted(times)
    assert all(0 <= at <= seconds for at in times)


@given(st.integers(0, 1000))
def test_uniform_texts_have_lengths_within_the_bounds(seed: int) -> None:
    texts = list(uniform_texts(["card stolen", "my parcel"], 20, lambda word: 1, seed, (8, 60)))
    assert all(8 <= len(text.split()) + 2 <= 60 for text in texts)


def test_uniform_texts_take_every_length_about_equally_often() -> None:
    lengths = Counter(len(text.split()) + 2 for text in uniform_texts(["a b c d"], 5300, lambda word: 1, 1, (8, 60)))
    assert set(lengths) == set(range(8, 61))
    assert max(lengths.values()) < 160


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(ValueError, match="no words"):
        next(uniform_texts(["  "], 1, len, 1))


def test_the_most_popular_text_is_drawn_in_the_share_of_the_largest_count() -> None:
    drawn = Counter(weighted_draw(["a", "b", "c", "d"], [1, 70, 29], 10_000, seed=2))
    assert len(drawn) == 3
    assert [count / 10_000 for _, count in drawn.most_common()] == pytest.approx([0.7, 0.29, 0.01], abs=0.02)


def test_zipf_weights_fall_with_the_rank() -> None:
    assert zipf(1.0, 4) == [1, 1 / 2, 1 / 3, 1 / 4]
    assert zipf(0.0, 3) == [1, 1, 1]


def test_a_log_or_counts_give_the_popularity(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    (tmp_path / "counts.txt").write_text("3\n1\n")
    parquet.write_table(pa.table({"path": ["/a", "/b", "/a", "/a"]}), tmp_path / "log.parquet")
    assert popularity(tmp_path / "counts.txt") == [3, 1]
    assert sorted(popularity(tmp_path / "log.parquet")) == [1, 3]


@pytest.mark.parametrize("content", ["", "a\n", "-1\n", "0\n"])
def test_a_file_without_counts_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "counts.txt").write_text(content)
    with pytest.raises(ValueError, match=r"counts\.txt"):
        popularity(tmp_path / "counts.txt")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--texts", "nowhere.csv"], "nowhere.csv"),
        (["--popularity", "nowhere.txt"], "nowhere.txt"),
        (["--family", "other"], "--texts: give texts for the family other"),
        (["--family", "other", "--texts", "texts.txt"], "--family: "),
    ],
)
def test_what_cannot_be_read_is_named_before_anything_starts(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("where is my card\n")
    with pytest.raises(SystemExit) as ended:
        options_of(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
