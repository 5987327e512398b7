"""Questions are read from files and drawn in repeatable orders."""

from __future__ import annotations

import argparse
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from loadtest.client import Question
from loadtest.texts import classes, popular, read_questions, texts_file


def test_a_text_file_gives_one_question_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\n")
    assert read_questions(tmp_path / "a.txt") == [Question("one"), Question("two")]


def test_a_csv_gives_texts_and_the_names_of_their_labels(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"one, two",card\nthree,17\n')
    assert read_questions(tmp_path / "a.csv") == [Question("one, two", label="card"), Question("three")]


@pytest.mark.parametrize(("labels", "read"), [(["card", "refund"], ["card", "refund"]), ([0, 1], [None, None])])
def test_a_parquet_file_gives_texts_and_labels_that_are_names(
    tmp_path: Path, labels: list[str | int], read: list[str | None]
) -> None:
    parquet.write_table(pa.table({"text": ["one", "two"], "label": labels}), tmp_path / "a.parquet")
    assert [question.label for question in read_questions(tmp_path / "a.parquet")] == read


@pytest.mark.parametrize(("name", "content"), [("a.txt", "\n"), ("a.csv", "text\n"), ("b.csv", "words\none\n")])
def test_a_file_with_nothing_to_ask_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        read_questions(tmp_path / name)


QUESTIONS = [Question(f"text {number}") for number in range(50)]


def test_popular_texts_come_in_the_shares_of_their_rank() -> None:
    drawn = Counter(question.text for question in islice(popular(QUESTIONS, seed=1), 20_000))
    shares = [count / 20_000 for _, count in drawn.most_common()]
    harmonic = sum(1 / rank for rank in range(1, 51))
    assert shares[0] == pytest.approx(1 / harmonic, rel=0.1)
    assert shares[9] == pytest.approx(0.1 / harmonic, rel=0.25)


def test_the_same_seed_draws_the_same_questions() -> None:
    one, other, third = (list(islice(popular(QUESTIONS, seed), 100)) for seed in (1, 1, 2))
    assert one == other != third


def test_classes_come_in_their_shares_and_change_nothing_else() -> None:
    source = [Question(f"text {number}", label="card") for number in range(4000)]
    asked = list(classes(iter(source), 1, {"strict": 0.25, "eco": 0.75}))
    assert [(question.text, question.label) for question in asked] == [(one.text, one.label) for one in source]
    assert Counter(question.quality for question in asked)["eco"] == pytest.approx(3000, rel=0.05)


def test_a_file_of_texts_that_is_not_there_is_an_error_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=texts_file)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--texts", str(tmp_path / "gone.csv")])
    assert end.value.code == 2
    assert "gone.csv does not exist; give a .csv" in capsys.readouterr().err
