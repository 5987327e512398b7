"""`python -m server.replay.study DATA`: every recorded region under `percentile`, and beside it what else one might do.

The full table of the policy's promises: two points at half the joules, half of the answers at full quality, flat and
diurnal load. Whole calendar years are scored; what the recording holds before them is history.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from energy.grid.replay import read_forecasts
from models.store import write_atomic
from server.replay.baselines import forecast_level, trailing_level
from server.replay.command import made_up_points
from server.replay.course import Course, read_course, with_load
from server.replay.figures import Figures, dial_costs, figures_of, years_of
from server.replay.simulate import Faults, Played, fixed, simulate
from server.shaping_settings import ShapingSettings

POINTS = made_up_points(0.5)
SETTINGS = ShapingSettings(policy="percentile", full_share=0.5)
COSTS = dial_costs(POINTS, SETTINGS)
LOCAL_HOURS = {"AUS_QLD": 10, "BPAT": -8, "CISO": -8, "DE": 1, "ERCO": -6, "FPL": -5, "FR": 1, "GB": 0, "ISNE": -5}
LOCAL_HOURS |= {"NL": 1, "NYISO": -5, "PJM": -5, "PL": 1, "SE": 1}
"""Standard time of the regions, hours after UTC, for the diurnal load."""
OUTAGE = Faults(outage_s=6 * 3600)
LATE = Faults(age_s=2 * 3600)
WHAT = (
    "two points, the second at half the joules; full_share 0.5; of_oracle: saving by timing as a share of what"
    " hindsight saves at the same share in every calendar year; outages every 174 hours; late readings brought to now"
)


@dataclass(frozen=True)
class Region:
    """One recorded series, its zone's short name, and the steps that make whole calendar years."""

    name: str
    course: Course
    scored: slice

    def score(self, played: Played, scored: slice | None = None) -> Figures:
        """The figures of whole years, or of the stretch `scored`."""
        part = scored or self.scored
        return figures_of(self.course.cut(part.start, part.stop), played.cut(part.start, part.stop), COSTS)


def regions(data: Path, load: str, names: Sequence[str] = ()) -> list[Region]:
    """The recordings below `data/carbon`, all of them or those named."""
    found = []
    for path in sorted((data / "carbon").glob("*.csv.gz")):
        name = path.name.split("_2020")[0]
        if not names or name in names:
            course = with_load(read_course(path, "flat"), load, LOCAL_HOURS.get(name, 0))
            found.append(Region(name, course, whole_years(course)))
    return found


def whole_years(course: Course) -> slice:
    """The steps from the first New Year to the last one in the course; all of it where that is less than a year."""
    times = course.times()
    year = times.astype("datetime64[Y]")
    end = times[-1] + np.timedelta64(round(course.step_s), "s")
    ends = np.arange(year[0], end.astype("datetime64[Y]") + 1).astype("datetime64[s]")
    inside = [stamp for stamp in ends if times[0] <= stamp <= end]
    if len(inside) < 2:
        return slice(0, len(course))
    first, last = ((stamp - times[0]) / np.timedelta64(1, "s") / course.step_s for stamp in (inside[0], inside[-1]))
    return slice(round(first), round(last))


def study(region: Region) -> dict[str, Figures]:
    """`percentile`, with a sound feed and with faults, and its rivals; of several years the last one alone too, when
    the seasons are known."""
    course = region.course
    played = {
        "percentile": simulate(course, POINTS, SETTINGS, name="percentile"),
        "6 h outage a week": simulate(course, POINTS, SETTINGS, OUTAGE, name="6 h outage a week"),
        "2 h late": simulate(course, POINTS, SETTINGS, LATE, name="2 h late"),
        "7-day median": fixed(course, POINTS, trailing_level(course, 7, 0.5), "7-day median"),
        "30-day median": fixed(course, POINTS, trailing_level(course, 30, 0.5), "30-day median"),
    }
    found = {name: region.score(one) for name, one in played.items()}
    years = [(begin, end) for begin, end, _ in years_of(course.cut(region.scored.start, region.scored.stop))]
    if len(years) > 1:
        begin, end = years[-1]
        last = slice(region.scored.start + begin, region.scored.start + end)
        found["percentile, last year"] = region.score(played["percentile"], last)
    return found


def forecast_study(region: Region, path: Path) -> dict[str, Figures]:
    """Forecasts as issued, alone and with the past, against `percentile` in the same half year."""
    forecasts = read_forecasts(path)
    course = region.course
    begin, end = (
        round((moment - course.start).total_seconds() / course.step_s) for moment in (min(forecasts), max(forecasts))
    )
    part = slice(begin, end)
    rivals = {"percentile": simulate(course, POINTS, SETTINGS)}
    for days in (0, 7, 30, 365):
        name = f"96 h ahead + {days} d past" if days else "96 h ahead"
        rivals[name] = fixed(course, POINTS, forecast_level(course, forecasts, 0.5, days), name)
        if days:
            rivals[f"{days} d past"] = fixed(course, POINTS, trailing_level(course, days, 0.5), f"{days} d past")
    return {name: region.score(one, part) for name, one in rivals.items()}


def show(console: Console, title: str, found: dict[str, dict[str, Figures]]) -> None:
    """One line a region; a column of "share of the oracle's saving" for every policy."""
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    table = Table("region", *names, "full share (by year)", "sw/d", title=title)
    for region, figures in found.items():
        first = figures[names[0]]
        years = " ".join(f"{share:.1%}" for share in first.full_share_by_year.values())
        shares = [f"{figures[name].of_oracle:.1%}" if name in figures else "-" for name in names]
        table.add_row(region, *shares, f"{first.full_share:.1%} ({years})", f"{first.switches_per_day:.2f}")
    console.print(table)


def main() -> None:
    """Play everything, print the tables, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder that holds carbon/")
    parser.add_argument("--regions", nargs="*", default=(), help="only these")
    parser.add_argument("--loads", nargs="*", default=("flat", "diurnal"), choices=("flat", "diurnal"))
    parser.add_argument("--no-forecasts", action="store_true", help="leave the forecasts out")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    known = {one.name for one in regions(given.data, "flat")}
    if not known:
        parser.error(f"{given.data / 'carbon'}: no recordings there (*.csv.gz); name the folder that holds carbon/")
    if strange := sorted(set(given.regions) - known):
        parser.error(f"--regions: {', '.join(strange)} not among {', '.join(sorted(known))}")
    console = Console(width=150)
    found: dict[str, dict[str, dict[str, Figures]]] = {}
    for load in given.loads:
        chosen = regions(given.data, load, given.regions)
        found[load] = {one.name: study(one) for one in track(chosen, f"{load} load", console=console, transient=True)}
        show(console, f"{load} load: saving by timing; a uniform mix's is 0, the yearly oracle's 100 %", found[load])
    ahead = {}
    rest = [] if given.no_forecasts else regions(given.data, "flat", given.regions)
    for one in track(rest, "forecasts", console=console, transient=True):
        path = given.data / "carbon" / "forecast_96h" / f"{one.name}_2021H2.csv.gz"
        if path.exists():
            ahead[one.name] = forecast_study(one, path)
    if ahead:
        found["as_issued_forecasts_second_half_2021"] = ahead
        show(console, "second half of 2021, with 96-hour forecasts as issued", ahead)
    if given.out is not None:
        write_atomic(given.out, kept(found).encode())
        console.print(f"written: {given.out}")


def kept(found: Mapping[str, Mapping[str, Mapping[str, Figures]]]) -> str:
    """JSON for the repository, a line a policy: load -> region -> policy -> the figures that the promises are of."""
    loads = []
    for load, by_region in found.items():
        rows = [
            f"  {json.dumps(region)}: {{\n" + ",\n".join(_row(name, one) for name, one in figures.items()) + "\n  }"
            for region, figures in by_region.items()
        ]
        loads.append(f" {json.dumps(load)}: {{\n" + ",\n".join(rows) + "\n }")
    about = f' "command": "make bench-policies",\n "what": {json.dumps(WHAT)},\n'
    return "{\n" + about + ",\n".join(loads) + "\n}\n"


def _row(name: str, figures: Figures) -> str:
    shown = {
        "of_oracle": round(figures.of_oracle, 4),
        "full_share": round(figures.full_share, 4),
        "switches_per_day": round(figures.switches_per_day, 2),
    }
    return f"   {json.dumps(name)}: {json.dumps(shown)}"


if __name__ == "__main__":
    main()
