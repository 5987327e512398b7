"""`make soak`: half an hour at half the capacity; memory and the number of metric series must not grow.

Prints a line a minute and a table of figures, and exits with 1 if one of them misses its limit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console

from loadtest.chaos_cases import capacity
from loadtest.client import Question
from loadtest.demo_family import FAMILY, compile_demo_family
from loadtest.open_loop import offer
from loadtest.served import Served, serve
from loadtest.standing import Counters, Figure, at_least, at_most, only, show
from loadtest.texts import read_questions, texts_file
from loadtest.tree import read_tree

MOST_GROWTH_MIB = 50.0
WARM_UP_S = 60.0
STEP_S = 60.0

console = Console()


def soak(served: Served, questions: list[Question], minutes: float) -> list[Figure]:
    """Half the capacity for so long. The base of memory and series is taken after a minute of the same load."""
    rate = capacity(served, questions, 3000) / 2
    counters = Counters(served.metrics_url)
    console.print(f"{rate:.0f} requests/s for {minutes:g} minutes")
    statuses: Counter[int] = Counter()

    def load(seconds: float) -> None:
        outcomes, _ = offer("127.0.0.1", served.port, questions, rate, seconds)
        statuses.update(outcome.status for outcome in outcomes)

    load(WARM_UP_S)
    counters.read()
    series, base = counters.series, read_tree(served.process.pid, memory=True).pss_bytes
    most = latest = base
    ends = time.monotonic() + 60 * minutes
    while (left := ends - time.monotonic()) > 1:
        load(min(STEP_S, left))
        counters.read()
        latest = read_tree(served.process.pid, memory=True).pss_bytes
        most = max(most, latest)
        console.print(
            f"{left / 60:5.1f} minutes left: {latest / 2**20:.0f} MiB, {counters.series} series", highlight=False
        )
    case = f"soak, {minutes:g} min"
    return [
        only(case, "statuses", statuses, {200}),
        at_most(case, "memory grew by", (latest - base) / 2**20, MOST_GROWTH_MIB, " MiB"),
        at_most(case, "memory at its most above the base", (most - base) / 2**20, 2 * MOST_GROWTH_MIB, " MiB"),
        at_most(case, "metric series more", counters.series - series, 0),
        at_least(case, "metric series", counters.series, series),
        at_most(case, "counters that went back", len(counters.fallen), 0),
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--family", default=FAMILY)
    parser.add_argument(
        "--texts", type=texts_file, help=".csv, .parquet or .txt with distinct texts (default: the demo's)"
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--edge", action="store_true", help="edge mode")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="a server setting, key=value")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        if options.texts is None:
            options.texts = folder / "questions.csv"
            compile_demo_family(options.store, options.texts)
        questions = [Question(q.text, "strict") for q in read_questions(options.texts)]
        settings = {"model.store": options.store.resolve(), "model.family": options.family}
        settings.update(pair.split("=", 1) for pair in options.settings)
        with serve(folder, settings, edge=options.edge) as served:
            figures = soak(served, questions, options.minutes)
    raise SystemExit(0 if show(console, figures) else 1)


if __name__ == "__main__":
    main()
