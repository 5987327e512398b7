"""How far off the estimated source is, against published measurements of named servers, before and after calibration.

python -m energy.accuracy [--out FILE]

Two references, both SPECpower_ssj2008 results (watts at the plug, whole server):

- `reference/specpower_ends.csv`: idle and full load of servers whose CPU family is in our table. The estimate of each
  is made from its threads and memory alone, as on a machine that we know nothing else of. (The family's coefficients
  are means over such results, these among them: this is the spread within families, not a test on families never seen.)
- `reference/specpower_curves.csv`: power at eleven loads. Each server is calibrated with its points at idle, 50 % and
  100 % (and 10 %), and judged at the loads in between, which the calibration has not seen. A target load is a share of
  the throughput, which comes close to the share of CPU time.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from energy.calibration import Calibration
from energy.coefficients import Coefficients, load_coefficients

FOLDER = Path(__file__).with_name("reference")
THREE_POINTS = (0.0, 0.5, 1.0)
FOUR_POINTS = (0.0, 0.1, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Errors:
    """Differences of estimate and reference as shares of the estimate, which is what error bands are shares of."""

    figures: int
    median: float
    p95: float
    largest: float
    exported: float
    """The half width of the error band that such figures are exported with."""
    covered: float
    """Share of the references within that band."""


def errors_of(pairs: Iterable[tuple[float, float]], exported: float) -> Errors:
    """Sum up pairs of estimate and reference, watts."""
    shares = sorted(abs(estimate - reference) / estimate for estimate, reference in pairs)
    last = len(shares) - 1
    return Errors(
        figures=len(shares),
        median=round(shares[last // 2], 4),
        p95=round(shares[-(-last * 95 // 100)], 4),
        largest=round(shares[-1], 4),
        exported=round(exported, 4),
        covered=round(sum(share <= exported for share in shares) / len(shares), 4),
    )


def uncalibrated(table: Coefficients, load: str) -> list[tuple[float, float]]:
    """Pairs of estimate and reference at `idle` or `full`, of every server of the file."""
    pairs = []
    for row in _rows("specpower_ends.csv"):
        cpu = table.for_family(row["family"])
        per_thread = cpu.min_watts if load == "idle" else cpu.max_watts
        estimate = int(row["threads"]) * per_thread + float(row["memory_gib"]) * table.memory_watts_per_gib
        pairs.append((estimate, float(row[f"{load}_watts"])))
    return pairs


def _above_idling(table: Coefficients) -> list[tuple[float, float]]:
    ends = zip(uncalibrated(table, "full"), uncalibrated(table, "idle"), strict=True)
    return [(full[0] - idle[0], full[1] - idle[1]) for full, idle in ends]


def calibrated(points: Sequence[float]) -> list[tuple[float, float]]:
    """Pairs of estimate and reference at the loads that `points` leaves out, of every curve of the file."""
    pairs = []
    for row in _rows("specpower_curves.csv"):
        curve = {tenth / 10: float(row[f"watts_{tenth * 10}"]) for tenth in range(11)}
        own = Calibration.of({load: curve[load] for load in points}, reference=row["result"], date=row["published"])
        pairs += [(own.watts(load), watts) for load, watts in curve.items() if load not in points]
    return pairs


def study() -> dict[str, Errors]:
    """Every comparison by name."""
    table = load_coefficients()
    without = table.uncertainty["uncalibrated"]
    return {
        "uncalibrated, full load": errors_of(uncalibrated(table, "full"), without),
        "uncalibrated, idle": errors_of(uncalibrated(table, "idle"), without),
        "uncalibrated, above idling": errors_of(_above_idling(table), table.uncertainty["uncalibrated_dynamic"]),
        "calibrated at 0, 50, 100 %": errors_of(
            calibrated(THREE_POINTS), table.uncertainty["calibrated_without_low_load"]
        ),
        "calibrated at 0, 10, 50, 100 %": errors_of(calibrated(FOUR_POINTS), table.uncertainty["calibrated"]),
    }


def _rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8", newline="") as stream:
        lines = (line for line in stream if not line.startswith("#"))
        return list(csv.DictReader(lines))


def main() -> None:
    """Print the comparisons as a table, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    out = parser.parse_args().out
    found = study()
    print(f"{'estimate':32} {'figures':>7} {'median':>7} {'p95':>7} {'largest':>7} {'exported':>8} {'covered':>7}")
    for name, one in found.items():
        shares = f"{one.median:7.1%} {one.p95:7.1%} {one.largest:7.1%} {one.exported:8.0%} {one.covered:7.0%}"
        print(f"{name:32} {one.figures:7} {shares}")
    if out is not None:
        tree = {"command": "python -m energy.accuracy", **{name: asdict(one) for name, one in found.items()}}
        out.write_text(json.dumps(tree, indent=1) + "\n")
        print(f"written to {out}")


if __name__ == "__main__":
    main()
