"""Data sets come from CSV, parquet, folders; what is missing is carved out; what is wrong is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.data.dataset import Split, carve, subset
from compile.data.loader import load_dataset
from compile.errors import DataError
from compile.recipe import DataSpec

ROWS = "text,label\n" + "".join(f"sentence number {i},{i % 3}\n" for i in range(90))


def csv_file(folder: Path, content: str = ROWS, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def test_a_single_csv_is_cut_into_three_splits_that_share_no_row(tmp_path: Path) -> None:
    dataset = load_dataset(DataSpec(source=str(csv_file(tmp_path))), seed=1)
    parts = [set(getattr(dataset, name).texts) for name in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 90
    assert dataset.labels == ("0", "1", "2")
    assert not dataset.pair


def test_label_words_are_numbered_and_labels_json_names_numbers(tmp_path: Path) -> None:
    words = csv_file(tmp_path, "text,label\n" + "".join(f"t{i},{'yes' if i % 2 else 'no'}\n" for i in range(40)))
    assert load_dataset(DataSpec(source=str(words)), 1).labels == ("no", "yes")
    (tmp_path / "labels.json").write_text(json.dumps({"0": "a", "1": "b", "2": "c"}))
    numbers = csv_file(tmp_path, name="numbers.csv")
    assert load_dataset(DataSpec(source=str(numbers)), 1).labels == ("a", "b", "c")


def test_a_folder_of_parquet_keeps_its_test_file_whole_and_carves_validation(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, rows in (("train", 60), ("test", 30)):
        columns = {
            "text": [f"{name} {i}" for i in range(rows)],
            "text_b": ["b"] * rows,
            "label": [i % 2 for i in range(rows)],
        }
        parquet.write_table(arrow.table(columns), tmp_path / f"{name}.parquet")
    dataset = load_dataset(DataSpec(source=str(tmp_path)), 1)
    assert dataset.pair
    assert dataset.test.texts == tuple(f"test {i}" for i in range(30))
    assert (len(dataset.train), len(dataset.validation)) == (54, 6)


def test_without_a_test_file_the_validation_file_is_the_test_split(tmp_path: Path) -> None:
    csv_file(tmp_path, name="train.csv")
    csv_file(tmp_path, "text,label\nheld out,1\nanother,0\n", "validation.csv")
    dataset = load_dataset(DataSpec(source=str(tmp_path)), 1)
    assert dataset.test.texts == ("held out", "another")
    assert len(dataset.validation) == 9


def test_max_train_rows_takes_a_seeded_subset_and_leaves_the_test_split_alone(tmp_path: Path) -> None:
    source = str(csv_file(tmp_path))
    whole = load_dataset(DataSpec(source=source), 1)
    part = load_dataset(DataSpec(source=source, max_train_rows=20), 1)
    assert len(part.train) == 20
    assert set(part.train.texts) < set(whole.train.texts)
    assert part.test.texts == whole.test.texts
    assert load_dataset(DataSpec(source=source, max_train_rows=20), 1).digest() == part.digest()


def test_max_judged_rows_thins_validation_and_test_and_says_so(tmp_path: Path) -> None:
    source = str(csv_file(tmp_path))
    whole = load_dataset(DataSpec(source=source, validation_share=0.4), 1)
    part = load_dataset(DataSpec(source=source, validation_share=0.4, max_judged_rows=16), 1)
    assert (len(part.validation), len(part.test)) == (16, 16)
    assert set(part.test.texts) < set(whole.test.texts)
    assert part.train.texts == whole.train.texts
    assert f"test: 16 of {len(whole.test)} rows, seed 1" in part.notes


def test_the_digest_changes_with_any_text_or_label_and_not_with_the_place(tmp_path: Path) -> None:
    first = load_dataset(DataSpec(source=str(csv_file(tmp_path))), 1)
    moved = load_dataset(DataSpec(source=str(csv_file(tmp_path, name="moved.csv"))), 1)
    other_text = load_dataset(DataSpec(source=str(csv_file(tmp_path, ROWS.replace("number 7,", "number seven,")))), 1)
    other_label = load_dataset(DataSpec(source=str(csv_file(tmp_path, ROWS.replace("number 7,1", "number 7,2")))), 1)
    assert moved.digest() == first.digest()
    assert len({first.digest(), other_text.digest(), other_label.digest()}) == 3


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        ("sentence,label\na,0\nb,1\n", "data.text", "no column 'text'"),
        ("text,intent\na,0\nb,1\n", "data.label", "no column 'label'"),
        ("text,label\n" + "a,0\n" * 30, "data.label", "fewer than two"),
        ("text,label\n" + "a,\nb,1\n" * 30, "data.label", "empty"),
        ("", "data.label", "no column"),
        ("text,label\n", "data.train", "no rows"),
        (ROWS + ",1\n", "data.text", "zero length, the first in row 91"),
        (ROWS + "late,-1\n", "data.label", "label -1"),
        (ROWS + "late,5000\n", "data.label", "label 5000 of only 91 rows"),
    ],
)
def test_unfit_rows_are_refused_by_field(tmp_path: Path, content: str, field: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load_dataset(DataSpec(source=str(csv_file(tmp_path, content))), 1)
    assert caught.value.field == field


def test_more_labels_in_the_rows_than_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('["a", "b"]')
    with pytest.raises(DataError, match="there are 2 labels"):
        load_dataset(DataSpec(source=str(csv_file(tmp_path))), 1)


def test_a_missing_path_and_a_garbled_parquet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_dataset(DataSpec(source=str(tmp_path / "gone.csv")), 1)
    (tmp_path / "bad.parquet").write_bytes(b"not a parquet file")
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read"):
        load_dataset(DataSpec(source=str(tmp_path / "bad.parquet")), 1)


def test_real_labels_make_a_regression_task(tmp_path: Path) -> None:
    rows = "text,label\n" + "".join(f"number {i},{i / 8}\n" for i in range(40))
    dataset = load_dataset(DataSpec(source=str(csv_file(tmp_path, rows)), task="regression"), 1)
    assert dataset.regression
    assert dataset.labels == ("score",)
    assert dataset.train.labels.dtype == np.float32
    assert all(
        f"number {int(label * 8)}" == text
        for text, label in zip(dataset.train.texts, dataset.train.labels, strict=True)
    )


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("warm", "no numbers"),
        ("", "no numbers"),
        ("nan", "1 labels of 'all' are not finite in float32, the first in row 3"),
        ("-inf", "not finite"),
        ("1e39", "not finite in float32"),
    ],
)
def test_labels_that_are_no_numbers_are_refused_for_regression(tmp_path: Path, label: str, words: str) -> None:
    source = csv_file(tmp_path, f"text,label\na,0.5\nb,1.5\nc,{label}\n")
    with pytest.raises(DataError, match=words):
        load_dataset(DataSpec(source=str(source), task="regression"), 1)


@pytest.mark.parametrize("constant", ["train", "validation", "test"])
def test_labels_that_are_all_the_same_are_refused_for_regression(tmp_path: Path, constant: str) -> None:
    for name in ("train", "validation", "test"):
        rows = "".join(f"t{i},{2.5 if name == constant else i}\n" for i in range(9))
        csv_file(tmp_path, f"text,label\n{rows}", f"{name}.csv")
    with pytest.raises(DataError, match=f"all labels of '{constant}' are 2.5"):
        load_dataset(DataSpec(source=str(tmp_path), task="regression"), 1)


@pytest.mark.parametrize(("mean", "fits"), [(0, True), (1_000, True), (100_000, False)])
def test_labels_that_float32_hardly_tells_apart_are_refused(tmp_path: Path, mean: float, fits: bool) -> None:
    rows = "text,label\n" + "".join(f"t{i},{mean + i % 7 / 4}\n" for i in range(70))
    spec = DataSpec(source=str(csv_file(tmp_path, rows)), task="regression")
    if fits:
        scale = load_dataset(spec, 1).label_scale
        assert (scale.mean, scale.deviation) == (pytest.approx(mean + 0.75, rel=0.1), pytest.approx(0.5, rel=0.1))
        return
    with pytest.raises(DataError, match="too little for float32"):
        load_dataset(spec, 1)


def test_real_labels_ask_for_the_regression_task(tmp_path: Path) -> None:
    source = csv_file(tmp_path, "text,label\na,0.5\nb,1.5\nc,2\n")
    with pytest.raises(DataError, match="to regression"):
        load_dataset(DataSpec(source=str(source)), 1)


@given(rows=st.integers(2, 200), share=st.floats(0.01, 0.49), seed=st.integers(0, 5))
def test_carving_loses_no_row_and_repeats_none(rows: int, share: float, seed: int) -> None:
    split = Split(tuple(map(str, range(rows))), np.arange(rows, dtype=np.int64))
    rest, carved = carve(split, share, seed)
    assert sorted(rest.texts + carved.texts) == sorted(split.texts)
    assert len(carved) >= 1
    assert all(int(text) == label for text, label in zip(rest.texts, rest.labels, strict=True))
    assert subset(split, rows, seed) is split


@pytest.mark.parametrize(("name", "labels", "train", "test"), [("banking77", 77, 9003, 2156), ("sst2", 2, 67349, 1275)])
def test_published_sets_load_as_described(name: str, labels: int, train: int, test: int) -> None:
    root = os.environ.get("JOULESERVE_TEST_DATA")
    if root is None:
        pytest.skip("JOULESERVE_TEST_DATA does not name the folder of test data")
    dataset = load_dataset(DataSpec(source=f"{root}/text/{name}"), 7)
    assert (len(dataset.labels), len(dataset.train), len(dataset.test)) == (labels, train, test)
