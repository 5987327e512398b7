"""What-if: made-up courses with known answers, faults, the command, and a small part of the study on recorded data."""

from __future__ import annotations

import gzip
import json
import math
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from energy.grid.ladder import Limits
from models.manifest import OperatingPoint
from server.cli import app
from server.replay.baselines import forecast_level, standing, trailing_level
from server.replay.command import made_up_points, run
from server.replay.course import Course, read_course, with_load
from server.replay.errors import ReplayError
from server.replay.figures import allowed, dial_costs, figures_of, years_of
from server.replay.frontier import CLOSE, changed, settings_for, sweep
from server.replay.simulate import Faults, fixed, rearranged, simulate
from server.settings import Settings
from server.shaping_settings import ShapingSettings

POINTS = made_up_points(0.5)
SETTINGS = ShapingSettings()
COSTS = dial_costs(POINTS, SETTINGS)
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


def course(days: int = 40, step_s: float = 1800) -> Course:
    steps = round(days * 86_400 / step_s)
    hours = np.arange(steps) * step_s / 3600
    grams = 300 + 100 * np.sin(2 * np.pi * hours / 24) + 60 * np.sin(2 * np.pi * hours / 80)
    return Course("Z", BEGIN, step_s, grams, np.ones(steps))


def write_csv(path: Path, days: int = 10, gap: int | None = None) -> Path:
    rows = ["utc_time,ci_lifecycle"]
    for hour in range(24 * days):
        grams = "" if hour == gap else f"{300 + 100 * math.sin(2 * math.pi * hour / 24):.1f}"
        rows.append(f"{BEGIN + timedelta(hours=hour):%Y-%m-%dT%H:%M:%SZ},{grams}")
    path.write_text("\n".join(rows) + "\n")
    return path


def test_grams_and_kilowatt_hours_of_the_fixed_policies_are_as_computed_by_hand() -> None:
    even = Course("Z", BEGIN, 3600, np.full(100, 360.0), np.full(100, 10.0))
    full, small, mix, _ = (figures_of(even, one, COSTS) for one in standing(even, POINTS, np.full(100, 0.5)))
    # 100 h of 10 requests a second, a joule each: a kWh.
    assert (full.kwh, full.gco2e) == (pytest.approx(1), pytest.approx(360))
    assert (small.kwh, small.gco2e) == (pytest.approx(0.5), pytest.approx(180))
    assert mix.relative_accuracy == pytest.approx(0.975)
    assert mix.timing_gco2e == pytest.approx(0, abs=1e-9)
    assert math.isnan(mix.of_oracle)
    assert mix.to_dict()["of_oracle"] is None


def test_the_oracle_takes_the_dirtiest_hours_and_no_other() -> None:
    one = course()
    level = rearranged(one, np.full(len(one), 0.25), COSTS)
    assert level.mean() == pytest.approx(0.25)
    assert one.grams_per_kwh[level == 1].min() >= one.grams_per_kwh[level == 0].max()


def test_nothing_beats_the_oracle_and_percentile_comes_close() -> None:
    one = course()
    chosen = changed(SETTINGS, max_switches_per_day=10)
    played = simulate(one, POINTS, chosen)
    ours = figures_of(one, played, COSTS)
    assert 0.85 < ours.of_oracle <= 1
    assert ours.full_share == pytest.approx(0.5, abs=0.04)
    oracle = figures_of(one, standing(one, POINTS, played.level)[3], COSTS)
    assert oracle.of_oracle == pytest.approx(1)
    assert oracle.gco2e < ours.gco2e


def test_hindsight_is_not_beaten_by_keeping_more_quality_in_one_year_than_in_another() -> None:
    days = 2 * 366
    dirty_2020 = np.where(np.arange(24 * days) < 24 * 366, 500.0, 100.0)
    one = Course("Z", datetime(2020, 1, 1, tzinfo=UTC), 3600, dirty_2020, np.ones(24 * days))
    chosen = fixed(one, POINTS, np.where(np.arange(24 * days) < 24 * 366, 0.9, 0.1), "chosen")
    ours = figures_of(one, chosen, COSTS)
    mix, oracle = (figures_of(one, two, COSTS) for two in standing(one, POINTS, chosen.level)[2:])
    assert oracle.full_share == mix.full_share == pytest.approx(ours.full_share)
    assert oracle.gco2e <= ours.gco2e * (1 + 1e-9)
    assert ours.timing_gco2e == pytest.approx(mix.gco2e - ours.gco2e, abs=1e-6)


def test_the_same_replay_gives_the_same_figures() -> None:
    one = course(10)
    first, again = (simulate(one, POINTS, SETTINGS) for _ in range(2))
    assert np.array_equal(first.level, again.level)
    assert first.reasons == again.reasons


def test_a_dead_feed_ends_at_full_quality_and_comes_back() -> None:
    one = course(20)
    faults = Faults(outage_s=6 * 3600, outage_every_s=10 * 86_400)
    played = simulate(one, POINTS, SETTINGS, faults)
    # No week of history yet to guess from: after the cached two hours the grid is unknown.
    assert played.reasons["grid-unknown"] >= 4
    dead = round(10 * 86_400 / one.step_s)
    assert set(played.level[dead + 6 : dead + 12]) == {0.0}
    assert played.level[dead + 12 :].max() == 1


def three_points() -> tuple[OperatingPoint, ...]:
    """A point in between that costs much less than a mix of the ends."""
    full, small = POINTS
    changes = {"name": "lite", "joules_per_1k": 600.0, "cpu_seconds_per_1k": 0.6, "relative_accuracy": 0.99}
    return full, full.model_copy(update=changes), small


def test_between_three_points_the_dial_saves_what_they_cost_and_nothing_by_timing_where_it_stands_still() -> None:
    one, points = course(), three_points()
    costs = dial_costs(points, SETTINGS)
    still = figures_of(one, fixed(one, points, 0.5, "still"), costs)
    assert still.kwh == pytest.approx(0.6 * len(one) * 1800 / 3.6e6)
    assert still.relative_accuracy == pytest.approx(0.99)
    assert still.timing_gco2e == pytest.approx(0, abs=1e-9)
    assert math.isnan(still.of_oracle)


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.lists(st.floats(0, 500), min_size=8, max_size=8))
def test_hindsight_gives_the_same_answers_and_is_beaten_by_no_level(levels: list[float], grams: list[float]) -> None:
    points = three_points()
    costs = dial_costs(points, SETTINGS)
    one = Course("Z", BEGIN, 1800, np.repeat(grams, 6), np.ones(48))
    ours = fixed(one, points, np.tile(levels, 6), "ours")
    full, small, mix, oracle = (figures_of(one, two, costs) for two in standing(one, points, ours.level))
    found = figures_of(one, ours, costs)
    for beside in (mix, oracle):
        assert beside.kwh == pytest.approx(found.kwh, rel=0.01)
        assert beside.relative_accuracy == pytest.approx(found.relative_accuracy, abs=1e-3)
    assert oracle.timing_gco2e >= found.timing_gco2e - 0.01 * full.gco2e
    assert small.gco2e <= oracle.gco2e * (1 + 1e-9) <= full.gco2e * (1 + 1e-9)
    assert found.timing_gco2e == pytest.approx(mix.gco2e - found.gco2e, abs=1e-9)


def test_readings_older_than_the_ladder_takes_are_none() -> None:
    one = course(20)
    refused, taken = (
        simulate(one, POINTS, SETTINGS, Faults(3 * 3600, limits=Limits(live_max_age_s=age))) for age in (7200, 14_400)
    )
    assert (refused.reasons, refused.level.max()) == ({"grid-unknown": len(one)}, 0)
    assert taken.level.max() == 1


def test_late_readings_move_the_dial_late() -> None:
    step = Course("Z", BEGIN, 1800, np.array([100.0] * 384 + [900.0] * 20), np.ones(404))
    chosen = changed(SETTINGS, full_share=0.9)
    prompt, late = (int(simulate(step, POINTS, chosen, Faults(age)).level[384:].argmax()) for age in (0, 7200))
    assert late - prompt == 4


def test_late_readings_are_brought_to_now_by_the_days_before() -> None:
    hours = np.arange(48 * 20) / 2
    daily = Course("Z", BEGIN, 1800, 300 + 100 * np.sin(2 * np.pi * np.floor(hours) / 24), np.ones(48 * 20))
    chosen = changed(SETTINGS, policy="threshold", dirty_above_grams_per_kwh=330, clean_below_grams_per_kwh=310)
    prompt, late = (simulate(daily, POINTS, chosen, Faults(age)).level for age in (0, 7200))
    first, known = slice(0, 48 * 3), slice(48 * 5, None)
    assert not np.array_equal(prompt[first], late[first])
    assert np.array_equal(prompt[known], late[known])


def test_gaps_in_the_recording_cost_energy_and_no_grams(tmp_path: Path) -> None:
    one = read_course(write_csv(tmp_path / "g.csv", gap=30), "flat")
    assert np.isnan(one.grams_per_kwh).sum() == 2
    figures = figures_of(one, fixed(one, POINTS, 0.0, "full"), COSTS)
    assert figures.kwh == pytest.approx(240 * 3600 / 3.6e6)
    assert not math.isnan(figures.gco2e)
    assert simulate(one, POINTS, SETTINGS).level.max() == 1


def test_diurnal_load_is_highest_in_the_local_afternoon_and_one_in_the_mean() -> None:
    loaded = with_load(course(10), "diurnal", utc_offset_h=-8)
    assert loaded.load.mean() == pytest.approx(1)
    assert np.argmax(loaded.load[:48]) / 2 == pytest.approx(22)


def test_a_load_recording_is_laid_over_the_course_by_hour_of_the_week(tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    rows = [f"{BEGIN + timedelta(hours=h):%Y-%m-%dT%H:%M},{7200 if h % 24 == 9 else 3600}" for h in range(168)]
    path.write_text("time,count\n" + "\n".join(rows))
    loaded = with_load(course(21), str(path))
    assert set(loaded.load.tolist()) == {1.0, 2.0}
    assert (loaded.load[18::48] == 2).all()
    path.write_text(path.read_text().replace("time,count", "time,requests_per_s"))
    assert set(with_load(course(21), str(path)).load.tolist()) == {3600.0, 7200.0}


@pytest.mark.parametrize("fast_rows", [12, 600], ids=["usually by the hour", "usually by five minutes"])
def test_a_feed_that_changed_its_step_is_known_throughout_and_counts_each_hour_alike(
    tmp_path: Path, fast_rows: int
) -> None:
    rows = [(BEGIN + timedelta(hours=hour), 300 + hour) for hour in range(24)]
    rows += [(BEGIN + timedelta(hours=24, minutes=5 * row), 100 + row % 12) for row in range(fast_rows)]
    for column in ("ci_lifecycle", "count"):
        lines = [f"{time:%Y-%m-%dT%H:%M:%SZ},{value}" for time, value in rows]
        (tmp_path / f"{column}.csv").write_text("\n".join([f"utc_time,{column}", *lines]) + "\n")
    one = read_course(tmp_path / "ci_lifecycle.csv", str(tmp_path / "count.csv"))
    for begin, mean in ((3, 303), (24, 105.5)):
        hour = one.grams_per_kwh[round(begin * 3600 / one.step_s) : round((begin + 1) * 3600 / one.step_s)]
        assert hour.mean() == pytest.approx(mean)
    assert 300 / 3600 <= one.load.min() <= one.load.max() <= 111 / 300


def test_a_recording_without_any_intensity_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    path.write_text("time,grams\n" + "\n".join(f"2024-01-01T{hour:02}:00Z," for hour in range(24)))
    with pytest.raises(ReplayError, match="holds no intensity"):
        read_course(path, "flat")


def test_a_year_of_a_few_days_belongs_to_its_neighbour() -> None:
    odd = Course("Z", datetime(2019, 12, 20, tzinfo=UTC), 3600, np.zeros(24 * 387), np.ones(24 * 387))
    assert years_of(odd) == [(0, len(odd), "2020")]
    two = Course("Z", datetime(2020, 1, 1, tzinfo=UTC), 3600, np.zeros(24 * 731), np.ones(24 * 731))
    assert years_of(two) == [(0, 8784, "2020"), (8784, 17_544, "2021")]


@pytest.mark.parametrize("policy", ["percentile", "threshold"])
def test_the_settings_that_a_sweep_prints_give_the_wanted_quality(policy: str) -> None:
    one, faults = course(20), Faults(age_s=7200)
    base = changed(SETTINGS, policy=policy, max_switches_per_day=10)
    trials = sweep(one, POINTS, base, faults, want=0.66)
    shares = [figures.full_share for _, figures in trials]
    assert shares == sorted(shares)
    words = settings_for(trials, base, 0.66).partition("jouleserve tune ")[2].partition(" (")[0].split()
    given = dict(word.removeprefix("shaping.").split("=") for word in words)
    assert given["policy"] == policy
    again = figures_of(one, simulate(one, POINTS, changed(base, **given), faults), COSTS)
    assert again.full_share == pytest.approx(0.66, abs=CLOSE)


def test_a_sweep_says_where_nothing_comes_close() -> None:
    constant = Course("Z", BEGIN, 1800, np.full(960, 200.0), np.ones(960))
    base = changed(SETTINGS, policy="threshold")
    assert settings_for(sweep(constant, POINTS, base, want=0.5), base, 0.5).endswith("; nothing tried came closer)")
    with pytest.raises(ReplayError, match="no threshold to vary"):
        sweep(constant, POINTS, changed(SETTINGS, policy="off"))


def test_a_grid_of_a_few_grams_has_a_frontier_too() -> None:
    grams = 3 + np.arange(960) % 48 / 48
    trials = sweep(Course("SE", BEGIN, 1800, grams, np.ones(960)), POINTS, changed(SETTINGS, policy="threshold"))
    assert len(trials) == 9
    assert all(changes["clean_below_grams_per_kwh"] < changes["dirty_above_grams_per_kwh"] for changes, _ in trials)


def test_a_perfect_forecast_does_no_worse_than_the_past_alone() -> None:
    one = course(40, 3600)
    forecasts = {BEGIN + timedelta(days=day): one.grams_per_kwh[day * 24 : day * 24 + 96].tolist() for day in range(37)}
    ahead = figures_of(one, fixed(one, POINTS, forecast_level(one, forecasts, 0.5, 7), "ahead"), COSTS)
    past = figures_of(one, fixed(one, POINTS, trailing_level(one, 7, 0.5), "past"), COSTS)
    assert ahead.of_oracle >= past.of_oracle - 0.01


def test_points_below_the_floor_are_not_counted_as_savings() -> None:
    strict = ShapingSettings.model_validate({"floors": {"standard": 0.99, "eco": 0.9}})
    assert [point.name for point in allowed(POINTS, strict)] == ["full"]
    assert math.isnan(figures_of(course(5), simulate(course(5), POINTS, strict), dial_costs(POINTS, strict)).of_oracle)
    assert simulate(course(5), POINTS, strict).joules_per_1k.min() == 1000


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "out" / "figures.json"
    grid = write_csv(tmp_path / "DE.csv")
    arguments = ["replay", "--grid", str(grid), "--small-share", "0.5", "--policy", "percentile", "--policy", "off"]
    done = CliRunner().invoke(app, [*arguments, "--sweep", "--out", str(out)], env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    assert "for 50% at full quality: jouleserve tune shaping.policy=percentile shaping.full_share=0." in done.output
    assert f"written: {out}" in done.output
    tree = json.loads(out.read_bytes())
    names = [one["policy"] for one in tree["figures"]]
    assert names == ["percentile", "off", "always full", "always small", "carbon-blind mix", "oracle"]
    assert len(tree["sweep"]) >= 11
    assert tree["known_share"] == 1
    assert tree["zone"] == "DE"


def test_the_plot_is_written_whole_and_gaps_are_spoken_of(tmp_path: Path) -> None:
    plot = tmp_path / "made" / "replay.svg"
    grid = write_csv(tmp_path / "DE.csv", gap=30)
    arguments = ["replay", "--grid", str(grid), "--small-share", "0.5", "--plot", str(plot)]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    assert "0.4% of the time has no intensity" in done.output
    assert plot.read_text().rstrip().endswith("</svg>")
    assert [path.name for path in plot.parent.iterdir()] == ["replay.svg"]


@pytest.mark.parametrize("words", [["--rate", "inf"], ["--stale-hours", "inf"], ["--utc-offset", "nan"]])
def test_numbers_that_are_none_are_refused(tmp_path: Path, words: list[str]) -> None:
    grid = write_csv(tmp_path / "g.csv", 3)
    done = CliRunner().invoke(app, ["replay", "--grid", str(grid), "--small-share", "0.5", *words])
    assert done.exit_code == 2
    assert words[0] in done.output


def test_settings_that_do_not_go_together_are_named_as_in_the_settings_file() -> None:
    with pytest.raises(ReplayError, match=r"^shaping\.budget_amount: missing .*; give grams or kWh a period$"):
        changed(SETTINGS, policy="budget")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grid": Path("nowhere.csv")}, "--grid: nowhere.csv"),
        ({"load": "nowhere.csv"}, "--load: .*or give flat or diurnal"),
        ({"plot": Path("/dev/null/x.png")}, "--plot"),
        (
            {"settings": [ShapingSettings(fallback_point="nano")]},
            "fallback_point: no operating point 'nano'; use one of full, small",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    given: dict[str, object] = {
        "grid": write_csv(tmp_path / "g.csv", 3),
        "load": "flat",
        "rate": 1.0,
        "points": POINTS,
        "settings": [SETTINGS],
        "faults": Faults(),
        "utc_offset_h": 0.0,
        "sweeping": False,
        "want": None,
        "out": None,
        "plot": None,
        "known": Settings(),
    }
    with pytest.raises(ReplayError, match=said):
        run(**(given | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_a_small_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ReplayError, match="not between 0 and 1"):
        made_up_points(share)


@pytest.mark.parametrize(("name", "least"), [("GB", 0.93), ("AUS_QLD", 0.68)])
def test_recorded_years_come_close_to_the_oracle_and_keep_their_promises(name: str, least: float) -> None:
    """Queensland's sun asks for more switches than there may be."""
    folder = os.environ.get("JOULESERVE_TEST_DATA")
    if not folder:
        pytest.skip("JOULESERVE_TEST_DATA names no folder of test data")
    from server.replay.study import SETTINGS as STUDIED
    from server.replay.study import regions

    (region,) = regions(Path(folder), "flat", (name,))
    figures = region.score(simulate(region.course, POINTS, STUDIED))
    assert figures.of_oracle >= least
    assert figures.switches_per_day <= 1.5
    assert figures.full_share == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["empty"], "empty/carbon: no recordings there"),
        (["data", "--regions", "GB", "XX"], "--regions: XX not among GB"),
    ],
)
def test_a_study_of_recordings_that_are_not_there_is_refused(
    asked: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.replay.study import main

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "carbon"
    folder.mkdir(parents=True)
    rows = b"time,grams_per_kwh\n2020-01-01T00:00:00Z,100\n2020-01-01T01:00:00Z,200\n"
    (folder / "GB_2020.csv.gz").write_bytes(gzip.compress(rows))
    monkeypatch.setattr("sys.argv", ["study", *asked])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert said in capsys.readouterr().err
