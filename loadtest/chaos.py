"""`make chaos`: overload, new versions, other settings, poison, clients that leave, signals and kills, with figures.

Starts servers of its own on free ports: one for what a server survives, one for each signal, and one with two replicas
whose replicas are killed. Prints a table of figures and exits with 1 if one of them misses its limit.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from loadtest import chaos_cases as cases
from loadtest.client import Question
from loadtest.demo_family import FAMILY, compile_demo_family
from loadtest.served import Served, serve
from loadtest.standing import Figure, show
from loadtest.texts import read_questions, texts_file
from models.store import Store

CASES = ("overload", "versions", "settings", "poison", "leaving", "signals", "kills")
QUEUE_REQUESTS = 512
STOP_WITHIN_S = 30.0

console = Console()


class Chaos:
    """The cases, each on a server that it may use as it likes."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._questions = [Question(q.text, "strict") for q in read_questions(options.texts)]
        self._store: Store = cases.copy_store(options.store, options.family, folder / "store")
        self._names = cases.second_version(self._store, options.family)
        self.figures: list[Figure] = []

    def run(self) -> None:
        """Run what was asked for."""
        wanted = set(self._options.only or CASES)
        if wanted & {"overload", "versions", "settings", "poison", "leaving"}:
            with self._serve("main") as (served, place):
                self._run_on_one(wanted, served, place)
        if "signals" in wanted:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                with self._serve(number.name) as (served, _):
                    self._add(
                        lambda served=served, number=number: cases.stop_under_load(  # type: ignore[misc]
                            served, self._questions, number=number, within_s=STOP_WITHIN_S
                        )
                    )
        if "kills" in wanted:
            with self._serve("kills", {"server.replicas": 2}, edge=False) as (served, _):
                seconds = self._options.kill_seconds
                self._add(lambda: cases.kills(served, self._questions, seconds=seconds, every_s=10))

    def _run_on_one(self, wanted: set[str], served: Served, place: cases.Place) -> None:
        options, questions = self._options, self._questions
        several = ("versions", lambda: self._versions(served, place))
        todo: list[tuple[str, Callable[[], list[Figure]]]] = [
            ("overload", lambda: self._overload(served)),
            several,
            ("settings", lambda: cases.settings(served, place, questions, changes=8)),
            ("poison", lambda: cases.poison(served, questions, Question("word " * 4000), bursts=8)),
            ("leaving", lambda: cases.leaving(served, questions, leavers=100)),
        ]
        for name, case in todo:
            if name == "leaving" and not options.edge:
                continue  # HAProxy stands between; docs/standing.md tells of it
            if name in wanted:
                self._add(case)

    def _overload(self, served: Served) -> list[Figure]:
        options = self._options
        return cases.overload(
            served,
            self._questions,
            seconds=options.overload_seconds,
            times=3.0,
            objective_ms=options.objective_ms,
            requests=3000,
        )

    def _versions(self, served: Served, place: cases.Place) -> list[Figure]:
        return cases.versions(
            served, place, self._names, self._questions[:300], requests=self._options.requests, rounds=3
        )

    def _add(self, case: Callable[[], list[Figure]]) -> None:
        found = case()
        self.figures += found
        for figure in found:
            console.print(f"  {figure.case}: {figure.name}: {figure.value} ({figure.limit})", highlight=False)

    @contextlib.contextmanager
    def _serve(
        self, name: str, more: dict[str, object] | None = None, *, edge: bool | None = None
    ) -> Iterator[tuple[Served, cases.Place]]:
        folder, options = self._folder / name, self._options
        settings: dict[str, object] = {
            "model.store": self._store.root,
            "model.family": options.family,
            "cache.enabled": "false",
            "batching.max_queue_requests": QUEUE_REQUESTS,
            **(more or {}),
        }
        if options.objective_ms:
            settings["batching.latency_objective_ms"] = options.objective_ms
        settings.update(pair.split("=", 1) for pair in options.settings)
        console.print(f"{name}: a server starts")
        with serve(folder, settings, edge=options.edge if edge is None else edge) as served:
            yield served, cases.Place(self._store.root, options.family, folder / "run")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--family", default=FAMILY)
    parser.add_argument(
        "--texts", type=texts_file, help=".csv, .parquet or .txt with distinct texts (default: the demo's)"
    )
    parser.add_argument("--only", nargs="+", choices=CASES, help="not all cases")
    parser.add_argument("--edge", action="store_true", help="edge mode, but for the kills")
    parser.add_argument("--objective-ms", type=float, default=500.0)
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--kill-seconds", type=float, default=180.0)
    parser.add_argument("--requests", type=int, default=10_000, help="at least so many while versions change")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="a server setting, key=value")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        if options.texts is None:
            options.texts = folder / "questions.csv"
            compile_demo_family(options.store, options.texts)
        chaos = Chaos(options, folder)
        chaos.run()
    raise SystemExit(0 if show(console, chaos.figures) else 1)


if __name__ == "__main__":
    main()
