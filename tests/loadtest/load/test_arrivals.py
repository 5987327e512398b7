"""Arrivals keep their recording's shape at any length and rate, and the same seed gives the same times."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.load.arrivals import FLAT, RECORDED, ArrivalsError, arrivals, read_recording


@given(
    st.sampled_from([FLAT, *RECORDED]),
    st.floats(1, 600),
    st.floats(1, 50),
    st.integers(0, 2**32),
)
def test_times_ascend_within_the_run(name: str, seconds: float, rate: float, seed: int) -> None:
    times = arrivals(name, seconds, rate, seed)
    assert times == sorted(times)
    assert all(0 <= at <= seconds for at in times)


@pytest.mark.parametrize("name", [FLAT, *RECORDED])
def test_the_mean_rate_is_the_one_asked_for(name: str) -> None:
    assert len(arrivals(name, 600, 50, seed=1)) == pytest.approx(30_000, rel=0.03)


def test_the_same_seed_gives_the_same_times() -> None:
    one, other, third = (arrivals("bursty", 60, 20, seed) for seed in (1, 1, 2))
    assert one == other != third


def test_steps_without_a_request_get_none_and_busy_ones_their_share(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("count\n0\n3\n0\n1\n")
    times = arrivals(str(tmp_path / "a.csv"), 40, 100, seed=3)
    by_step = [sum(step * 10 <= at < step * 10 + 10 for at in times) for step in range(4)]
    assert by_step[0] == by_step[2] == 0
    assert by_step[1] / len(times) == pytest.approx(0.75, abs=0.03)


def test_the_bursty_recording_is_burstier_than_the_daily_one() -> None:
    def crowding(name: str) -> float:
        gaps = [later - earlier for earlier, later in pairwise(arrivals(name, 180, 40, seed=1))]
        mean = sum(gaps) / len(gaps)
        return sum((gap - mean) ** 2 for gap in gaps) / len(gaps) / mean**2

    assert crowding("bursty") > 3 * crowding("diurnal")


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
