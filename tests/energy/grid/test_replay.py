"""Recordings: found columns, gaps, speed, and files that are none."""

from __future__ import annotations

import gzip
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.grid.replay import BadRecording, Recording, ReplayProvider, read_recording
from energy.grid.signal import NoData

MIDNIGHT = datetime(2024, 5, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
ROWS = "2024-05-01T00:00:00Z,100\n2024-05-01T01:00:00Z,200\n2024-05-01T02:00:00Z,300\n"


def write(folder: Path, text: str, name: str = "day.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        ROWS,
        "utc_time,grams\n" + ROWS,
        "Time,Carbon_Intensity\n" + ROWS,
        "\ufefftime,ci_lifecycle\n" + ROWS.replace("Z", ""),
        ("utc_time,grams\n\n" + ROWS).replace("\n", "\r\n"),
        "utc_time,ci_direct,ci_lifecycle\n" + ROWS.replace("Z,", "Z,7,"),
    ],
    ids=["no header", "plain", "capitals", "byte-order mark, no zone", "line ends of Windows", "life cycle preferred"],
)
@pytest.mark.parametrize("name", ["day.csv", "day.csv.gz"])
def test_columns_are_found(tmp_path: Path, text: str, name: str) -> None:
    recording = read_recording(write(tmp_path, text, name))
    assert recording.times == tuple(MIDNIGHT + HOUR * h for h in range(3))
    assert recording.grams_per_kwh == (100, 200, 300)
    assert recording.step == HOUR


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("when,ci_lifecycle\n" + ROWS, "no time column"),
        ("utc_time,price\n" + ROWS, "no value column"),
        ("utc_time,ci_lifecycle\n" + ROWS.replace("200", "lots"), "row 3: could not convert"),
        ("utc_time,ci_lifecycle\n" + ROWS.replace("200", "-5"), "row 3: -5.0 gCO2e/kWh is no grid"),
        ("utc_time,ci_lifecycle\n2024-05-01\n", "row 2:"),
        ("utc_time,ci_lifecycle\n" + ROWS + ROWS, "row 5: its time is not after"),
        ("utc_time,ci_lifecycle\n2024-05-01T00:00Z,1\n", "fewer than two rows"),
    ],
)
def test_a_file_that_is_no_recording_is_refused_by_row(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadRecording, match=f"day.csv.*{said}"):
        read_recording(write(tmp_path, text))


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS, "day.csv.gz")
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(BadRecording, match="readable CSV"):
        read_recording(path)


def test_a_garbled_gzip_and_a_file_that_is_no_table_are_refused(tmp_path: Path) -> None:
    garbled, endless = write(tmp_path, ROWS, "day.csv.gz"), write(tmp_path, "x" * 200_000)
    whole = bytearray(garbled.read_bytes())
    whole[10] ^= 0xFF  # the first byte after the header
    garbled.write_bytes(whole)
    for path in (garbled, endless):
        with pytest.raises(BadRecording, match="readable CSV"):
            read_recording(path)


async def test_it_plays_faster_than_real_time_and_starts_over(tmp_path: Path) -> None:
    seconds = [0.0]
    provider = ReplayProvider(read_recording(write(tmp_path, ROWS)), "X", 3600, clock=lambda: seconds[0])
    played = []
    for second in (0.0, 0.9, 1.0, 2.5, 3.0, 4.2):
        seconds[0] = second
        reading = await provider.latest()
        played.append(reading.grams_per_kwh)
    assert played == [100, 100, 200, 300, 100, 200]
    assert (reading.kind, reading.zone, reading.time) == ("replay", "X", MIDNIGHT + HOUR)
    assert await provider.forecast() == ()


async def test_it_starts_where_told(tmp_path: Path) -> None:
    recording = read_recording(write(tmp_path, ROWS))
    provider = ReplayProvider(recording, start=MIDNIGHT + 2.5 * HOUR, clock=lambda: 0.0)
    assert (await provider.latest()).grams_per_kwh == 300
    with pytest.raises(BadRecording, match="lies outside the recording"):
        ReplayProvider(recording, start=MIDNIGHT + 3 * HOUR)


@pytest.mark.parametrize(
    "text", [ROWS.replace("200", ""), ROWS.replace("200", "NaN"), ROWS.replace("2024-05-01T01:00:00Z,200\n", "")]
)
def test_a_gap_is_no_value_and_not_the_row_before(tmp_path: Path, text: str) -> None:
    more = text + "2024-05-01T03:00:00Z,300\n2024-05-01T04:00:00Z,300\n"
    recording = read_recording(write(tmp_path, more))
    assert recording.at(MIDNIGHT + 0.99 * HOUR)[1] == 100
    with pytest.raises(NoData):
        recording.at(MIDNIGHT + 1.5 * HOUR)
    assert recording.at(MIDNIGHT + 2 * HOUR)[1] == 300


def test_a_feed_that_changes_its_step_has_no_gaps_where_it_is_slower() -> None:
    times = [MIDNIGHT + HOUR * hour for hour in range(4)]
    times += [MIDNIGHT + 4 * HOUR + timedelta(minutes=5 * row) for row in range(24)]
    recording = Recording(tuple(times), tuple(float(row) for row in range(28)), timedelta(minutes=5))
    assert recording.at(MIDNIGHT + 2.9 * HOUR) == (times[2], 2)
    assert [recording.holds(row) for row in (0, 2, 3, 4)] == [HOUR, HOUR, HOUR, HOUR / 12]
    gap = Recording((*times[4:8], *times[19:28]), (1.0,) * 13, HOUR / 12)  # an hour without a row
    with pytest.raises(NoData):
        gap.at(times[9])


@given(minutes=st.lists(st.integers(1, 90), min_size=1, max_size=30), seconds=st.floats(0, 1e7))
def test_any_moment_plays_the_row_that_covers_it_or_none(minutes: list[int], seconds: float) -> None:
    times = [MIDNIGHT]
    for gap in minutes:
        times.append(times[-1] + timedelta(minutes=gap))
    recording = Recording(tuple(times), tuple(float(i) for i in range(len(times))), timedelta(minutes=45))
    now = ReplayProvider(recording, clock=iter([0.0, seconds]).__next__).now()
    assert recording.start <= now < recording.start + recording.length
    covering = [i for i, t in enumerate(times) if t <= now < t + recording.holds(i)]
    if covering:
        assert recording.at(now) == (times[covering[-1]], covering[-1])
    else:
        with pytest.raises(NoData):
            recording.at(now)


@pytest.mark.parametrize(
    ("name", "rows", "step"),
    [
        ("DE_2020_2021_hourly", 17_544, HOUR),
        ("GB_2020_halfhourly", 18_576, HOUR / 2),
        ("FR_2020_halfhourly", 18_574, HOUR / 2),
    ],
)
def test_real_recordings_are_read_whole(name: str, rows: int, step: timedelta) -> None:
    folder = os.environ.get("JOULESERVE_TEST_DATA")
    if folder is None:
        pytest.skip("JOULESERVE_TEST_DATA names no folder of test data")
    recording = read_recording(Path(folder) / "carbon" / f"{name}.csv.gz")
    assert (len(recording.times), recording.step) == (rows, step)
    assert all(value is not None and 0 < value < 1000 for value in recording.grams_per_kwh)
