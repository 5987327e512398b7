"""Arrivals keep their course's shape at any length and rate, and the same seed gives the same times."""

from __future__ import annotations

import gzip
import os
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.load.arrivals import MADE, ArrivalsError, arrivals, read_recording


@given(
    st.sampled_from(MADE),
    st.floats(1, 600),
    st.floats(1, 50),
    st.integers(0, 2**32),
)
def test_times_ascend_within_the_run(name: str, seconds: float, rate: float, seed: int) -> None:
    times = arrivals(name, seconds, rate, seed)
    assert times == sorted(times)
    assert all(0 <= at <= seconds for at in times)


@pytest.mark.parametrize("name", MADE)
def test_the_mean_rate_is_the_one_asked_for(name: str) -> None:
    assert len(arrivals(name, 600, 50, seed=1)) == pytest.approx(30_000, rel=0.03)


@pytest.mark.parametrize("name", MADE)
def test_the_same_seed_gives_the_same_times(name: str) -> None:
    one, other, third = (arrivals(name, 60, 20, seed) for seed in (1, 1, 2))
    assert one == other != third


def test_steps_without_a_request_get_none_and_busy_ones_their_share(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("count\n0\n3\n0\n1\n")
    times = arrivals(str(tmp_path / "a.csv"), 40, 100, seed=3)
    by_step = [sum(step * 10 <= at < step * 10 + 10 for at in times) for step in range(4)]
    assert by_step[0] == by_step[2] == 0
    assert by_step[1] / len(times) == pytest.approx(0.75, abs=0.03)


def gaps_of(name: str, seed: int) -> list[float]:
    return [later - earlier for earlier, later in pairwise(arrivals(name, 180, 40, seed))]


@given(st.integers(0, 2**32))
def test_bursts_are_burstier_than_a_day(seed: int) -> None:
    def crowding(name: str) -> float:
        gaps = gaps_of(name, seed)
        mean = sum(gaps) / len(gaps)
        return sum((gap - mean) ** 2 for gap in gaps) / len(gaps) / mean**2

    assert crowding("bursty") > 3 * crowding("diurnal")


@given(st.integers(0, 2**32))
def test_few_silences_make_up_much_of_a_bursty_run(seed: int) -> None:
    gaps = sorted(gaps_of("bursty", seed), reverse=True)
    assert sum(gaps[: len(gaps) // 50]) > 90


@given(st.integers(0, 2**32))
def test_a_day_is_quiet_until_eight_and_busy_in_the_afternoon(seed: int) -> None:
    times = arrivals("diurnal", 180, 40, seed)
    night, afternoon = (sum(start <= at < start + 60 for at in times) for start in (0, 90))
    assert afternoon > 2 * night > 0


def test_recorded_times_keep_their_distances(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.csv.gz", "wt") as handle:
        handle.write("t_s,tokens\n100,1\n101,2\n105,3\n110,4\n")
    times = arrivals(str(tmp_path / "a.csv.gz"), 10, 0.4, seed=1)
    assert [at / times[1] for at in times] == pytest.approx([0, 1, 5, 10])


def test_a_recording_that_is_too_short_begins_again(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"t_ms": [0, 1000, 2000]}), tmp_path / "a.parquet")
    assert arrivals(str(tmp_path / "a.parquet"), 9, 1, seed=1) == pytest.approx(list(range(9)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("when\n1\n", "none of its columns"),
        ("count\n1\n-2\n", "less than none"),
        ("count\n0\n0\n", "has no request"),
        ("count\n1\nmany\n", "row 2: 'many' is no number"),
        ("t_s\n5\n5\n", "fewer than two moments"),
        ("", "none of its columns"),
    ],
)
def test_a_recording_that_cannot_be_used_is_named_with_why(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ArrivalsError, match=rf"a\.csv.*{says}"):
        read_recording(tmp_path / "a.csv")


def test_a_missing_file_says_what_there_is() -> None:
    with pytest.raises(ArrivalsError, match="does not exist; give a file, or one of flat, diurnal, bursty"):
        arrivals("daily", 10, 1, seed=1)


def test_of_a_recording_a_window_of_rows_can_be_taken(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"count": [9, 0, 3, 9]}), tmp_path / "a.parquet")
    times = arrivals(str(tmp_path / "a.parquet"), 20, 10, seed=1, rows="1:3")
    assert times
    assert all(10 <= at <= 20 for at in times)
    assert read_recording(tmp_path / "a.parquet", "2:").counts == (3, 9)


@pytest.mark.parametrize("rows", ["7", "-1:2", "a:b", "2:2", "1:4", "3:"])
def test_a_window_that_the_recording_does_not_have_is_refused(tmp_path: Path, rows: str) -> None:
    (tmp_path / "a.csv").write_text("count\n1\n2\n3\n")
    with pytest.raises(ArrivalsError, match="--rows"):
        read_recording(tmp_path / "a.csv", rows)


def test_made_arrivals_have_no_rows() -> None:
    with pytest.raises(ArrivalsError, match="--rows: bursty is made, not recorded"):
        arrivals("bursty", 10, 1, seed=1, rows="0:5")


@pytest.mark.parametrize(
    ("file", "rows"),
    [
        ("twitter_stream_2021_08_per_second.parquet", "0:86400"),
        ("nasa_http_1995_per_minute.csv.gz", None),
        ("azure_llm_2023_code.csv.gz", None),
        ("mooncake_conversation_2024.parquet", "1000:9000"),
    ],
)
def test_public_traces_are_compressed_to_a_run(file: str, rows: str | None) -> None:
    folder = os.environ.get("JOULESERVE_TEST_DATA")
    if not folder:
        pytest.skip("JOULESERVE_TEST_DATA names no folder of test data")
    times = arrivals(str(Path(folder) / "traces" / file), 180, 40, seed=1, rows=rows)
    assert len(times) == pytest.approx(7200, rel=0.05)
    assert times == sorted(times)
    assert 0 <= times[0] < 60 < 120 < times[-1] <= 180
