"""`make demo`: compile the demo family, serve it, send load while a grid day is replayed fast, show the joules.

Everything runs as a user would run it: the two commands, the HTTP API, `/metrics`. Ctrl-C stops all that was started.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import Progress

from loadtest.client import Reply, Run, closed_loop
from loadtest.demo_family import compile_demo_family
from loadtest.demo_tables import Reading, conservation_line, point_table, read_metrics, summary_lines
from loadtest.served import Served, interruptible, serve
from loadtest.texts import classes, popular, read_questions

GRID_DAY = Path(__file__).parent / "grid" / "day.csv"
CLASS_SHARES = {"standard": 0.8, "strict": 0.1, "eco": 0.1}
DAY_SECONDS = 86_400
PAUSE_S = 0.06
POLL_SECONDS = 1.5
DWELL_SECONDS = 5.0

console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def settings_of(store: Path, seconds: float) -> dict[str, object]:
    """Settings of the demo's server: a day in `seconds`, so polling and dwell are shortened likewise."""
    return {
        # The usual folder, so that `jouleserve tune` and `conserve` find this server.
        "server.run_dir": "var/run",
        "model.store": store,
        "grid.provider": "replay",
        "grid.replay_path": GRID_DAY,
        "grid.replay_speed": DAY_SECONDS / seconds,
        "grid.zone": "DEMO",
        "shaping.policy": "threshold",
        "shaping.poll_period_s": POLL_SECONDS,
        "shaping.min_dwell_s": DWELL_SECONDS,
        "server.log_level": "info",
    }


def send_day(served: Served, questions: Path, seconds: float, clients: int) -> Run:
    """Ask for `seconds`: popular texts come often (Zipf), in all three classes."""
    asked = read_questions(questions)
    stream = classes(popular(asked, seed=11, exponent=0.6), seed=12, shares=CLASS_SHARES)
    deadline = time.monotonic() + seconds
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("a day on the grid", total=seconds)

        def moved(reply: Reply) -> None:
            progress.update(task, completed=seconds - max(0.0, deadline - time.monotonic()))

        return asyncio.run(
            closed_loop(f"{served.url}/predict", stream, clients, lambda: time.monotonic() > deadline, moved, PAUSE_S)
        )


def settled(served: Served) -> Reading:
    """The node process's figures, after it has settled the last requests."""
    time.sleep(2.5)
    return read_metrics(served.metrics_url)


def demonstrate(options: argparse.Namespace) -> None:
    """The whole demo."""
    questions = options.folder / "questions.csv"
    compile_demo_family(options.store, questions)
    console.print("\nstarting the server …")
    with serve(
        options.folder,
        settings_of(options.store, options.seconds),
        port=options.port,
        metrics_port=options.metrics_port,
    ) as served:
        before = settled(served)
        mark = httpx.get(f"{served.metrics_url}/conservation", timeout=10).json()["mark"]
        console.print(f"sending load for {options.seconds:g} s while a recorded-shape grid day is replayed")
        run = send_day(served, questions, options.seconds, options.clients)
        after = settled(served)
        if not run.answered:
            raise RuntimeError(f"no request was answered; the end of {served.log}:\n{served.tail()}")
        console.print(point_table(run, before, after))
        for line in summary_lines(run, before, after):
            console.print(line, soft_wrap=True)
        books = httpx.get(f"{served.metrics_url}/conservation", params={"since": mark}, timeout=10).json()
        console.print(conservation_line(books), soft_wrap=True)
        console.print("\nthe server stays up; try:")
        console.print(
            f"  curl -i {served.url}/predict -H 'content-type: application/json' "
            '-d \'{"inputs": "I was charged twice for my order"}\'',
            soft_wrap=True,
        )
        console.print(f"  curl {served.metrics_url}/metrics      (Ctrl-C stops everything)")
        if options.stay:
            with contextlib.suppress(KeyboardInterrupt):
                served.process.wait()
        console.print("stopping …")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--folder", type=Path, default=Path("var/demo"))
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the replayed day takes")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--metrics-port", type=int, default=9400)
    parser.add_argument("--no-stay", dest="stay", action="store_false", help="stop the server after the table")
    with interruptible(), contextlib.suppress(KeyboardInterrupt):
        try:
            demonstrate(parser.parse_args())
        except (RuntimeError, subprocess.CalledProcessError) as error:
            console.print(f"the demo failed: {error}", style="red", markup=False)
            raise SystemExit(1) from None


if __name__ == "__main__":
    main()
