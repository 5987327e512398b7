"""`make bench`: what servers add to raw ONNX Runtime, measured in one interleaved run.

Every round visits every contestant under every load, in an order that moves on from round to round. Each load runs in
slices between slices of the floor, with which they are compared; median and range of those ratios are quoted.
CPU-seconds of the whole process tree per 1,000 requests stand in for joules. Exits 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.bench import measuring, workloads
from loadtest.bench.crew import Crew, warm_up
from loadtest.bench.plan import QUICK, Plan, cells, seconds_needed, turn_order, weighted_draw
from loadtest.bench.plot import draw
from loadtest.bench.results import Result, Round
from loadtest.bench.tables import show
from loadtest.bench.targets import judge, missed
from loadtest.demo_family import FAMILY, compile_demo_family
from loadtest.peers import bento, lit_serve, plain_torch, ray_serve, torch_serve
from loadtest.peers.contestant import Contestant, DidNotStart, Running
from loadtest.peers.model import ModelFiles
from loadtest.peers.ours import EDGE, HAPROXY, Ours
from loadtest.served import free_port
from loadtest.texts import read_questions, texts_file
from models.store import StoreError, write_atomic

PEERS: tuple[Contestant, ...] = (plain_torch.PEER, ray_serve.PEER, lit_serve.PEER, bento.PEER, torch_serve.PEER)
FLOOR_ROWS = (8, 16, 32)

console = Console(width=None if os.isatty(1) else 160, highlight=False)


class Benchmark:
    """One run."""

    def __init__(self, plan: Plan, model: measuring.Model, questions: Path, folder: Path, ours: Sequence[Ours]) -> None:
        version = workloads.open_version(model.store, model.family)
        self.plan, self.model, self.folder, self.ours = plan, model, folder, ours
        self.files: ModelFiles = workloads.model_files(version, model.point)
        self.texts = workloads.mixes(questions, Path(self.files.tokenizer))
        self.text_files = workloads.write_texts(folder, self.texts)
        self.result = Result(machine(), plan, tuple(one.name for one in ours))

    def run(self, peers: Sequence[Contestant], popularity: Sequence[float]) -> Result:
        """Everything. Raises RuntimeError where one of ours fails."""
        started = time.monotonic()
        crew = self._crew([*self.ours, *peers])
        expected = seconds_needed(self.plan, len(crew.members), len(self.ours))
        console.print(f"{len(crew.members)} contestants; this takes about {expected / 60:.0f} minutes")
        with crew.at_work(), contextlib.ExitStack() as stack:
            self._rest(crew)
            floors = {mix: stack.enter_context(self._floor(mix)) for mix in self.texts}
            self.result.floors = {mix: floor.whole for mix, floor in floors.items()}
            for number in range(self.plan.rounds):
                console.print(f"round {number + 1} of {self.plan.rounds}")
                self._round(crew, floors, number)
            self._low_rates(crew, next(iter(floors.values())))
        self.result.absent = crew.absent
        self._cache(popularity)
        self.result.wall_s = time.monotonic() - started
        return self.result

    def _crew(self, contestants: Sequence[Contestant]) -> Crew:
        some = next(iter(self.texts.values()))[:200]
        warm = partial(warm_up, texts=some, seconds=self.plan.warm_seconds, clock=time.perf_counter)
        return Crew(contestants, self.files, self.folder, warm, console.print)

    def _rest(self, crew: Crew) -> None:
        console.print("idling")

        def rest(found: dict[str, Running]) -> None:
            time.sleep(self.plan.settle_seconds)
            self.result.rests += measuring.idle(found, self.plan.idle_seconds)

        together: dict[str, Running] = {}
        if crew.together:
            crew.each(crew.members, lambda one, running: together.update({one.name: running}))
            rest(together)
        else:
            crew.each(crew.members, lambda one, running: rest({one.name: running}))
        crew.hush()

    def _round(self, crew: Crew, floors: dict[str, measuring.FloorBeside], number: int) -> None:
        one = Round([])
        self.result.rounds.append(one)
        shift = number * 997

        def measure(contestant: Contestant, running: Running) -> None:
            for cell in cells(self.plan):
                texts, floor = self.texts[cell.mix], floors[cell.mix]
                start = shift % len(texts)
                mine = [*texts[start:], *texts[:start]]
                load = measuring.load(contestant.name, running, floor, mine, cell.mix, cell.clients, self.plan)
                if contestant.ours and load.failures:
                    raise DidNotStart(f"{contestant.name}: requests failed, by status: {load.failures}")
                one.loads.append(load)

        crew.each(turn_order(crew.members, number), measure)

    def _floor(self, mix: str) -> measuring.FloorBeside:
        """It tries several batch sizes first and keeps the best."""
        return measuring.FloorBeside(self.model, self.text_files[mix], self.plan.floor_texts, FLOOR_ROWS)

    def _low_rates(self, crew: Crew, floor: measuring.FloorBeside) -> None:
        texts = next(iter(self.texts.values()))

        def measure(contestant: Contestant, running: Running) -> None:
            for rate in self.plan.rates_per_s:
                console.print(f"{contestant.name} at {rate:g} requests/s")
                found = measuring.at_rate(contestant.name, running, floor, texts, rate, self.plan, seed=1)
                self.result.rates.append(found)

        crew.each(crew.members, measure)

    def _cache(self, popularity: Sequence[float]) -> None:
        """Ours once more with the cache on; every round has texts of its own, so that nothing is warm."""
        texts, count = next(iter(self.texts.values())), self.plan.cache_texts
        for one in self.ours:
            more: dict[str, object] = {"cache.enabled": "true"}
            if importlib.util.find_spec("grpc"):
                more["server.grpc_port"] = free_port()
            cached = replace(one, settings={**one.settings, **more})
            with cached.running(self.files, self.folder / "cached") as running:
                for number in range(min(self.plan.cache_rounds, len(texts) // (2 * count)) or 1):
                    console.print(f"{one.name} with its cache, round {number + 1}")
                    mine = texts[number * 2 * count :][: 2 * count]
                    distinct, popular = mine[: len(mine) // 2], mine[len(mine) // 2 :]
                    drawn = weighted_draw(popular, popularity, 2 * len(popular), seed=number)
                    self.result.cache.append(
                        measuring.cache_round(one.name, running, distinct, drawn, self.plan, max(self.plan.clients))
                    )


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), platform.machine())
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()}


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="loadtest.bench", description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--family", default=FAMILY)
    parser.add_argument("--point", default="full", help="the full point of the family, which `strict` asks for")
    parser.add_argument(
        "--texts", type=texts_file, help=".csv, .parquet or .txt with distinct texts (default: the demo's)"
    )
    parser.add_argument("--peers", action="store_true", help="other servers too (`make peers` sets them up)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only contestants whose names contain one of these")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; no figure is worth quoting")
    parser.add_argument("--rounds", type=int, help=f"default {Plan().rounds}")
    parser.add_argument("--clients", type=int, nargs="+", help="default 1 16 64")
    parser.add_argument("--zipf", type=float, default=1.0, help="exponent of the repeated texts' popularity")
    parser.add_argument("--popularity", type=Path, help="counts of a recorded log instead: one a line, or a .parquet")
    parser.add_argument("--folder", type=Path, default=Path("var/bench"))
    parser.add_argument("--set", dest="settings", action="append", default=[], help="a setting of ours, key=value")
    options = parser.parse_args(arguments)
    try:
        if options.texts is not None:
            read_questions(options.texts)
        if options.popularity is not None:
            workloads.popularity(options.popularity)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if options.family != FAMILY and options.texts is None:
        parser.error(f"--texts: give texts for the family {options.family}; those that come with this are the demo's")
    try:
        if options.family != FAMILY:
            workloads.open_version(options.store, options.family)
    except StoreError as error:
        parser.error(f"--family: {error}")
    return options


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that the command line asks for."""
    plan = QUICK if options.quick else Plan()
    if options.rounds:
        plan = replace(plan, rounds=options.rounds)
    if options.clients:
        plan = replace(plan, clients=tuple(options.clients))
    return replace(plan, zipf_exponent=options.zipf)


def contestants_of(options: argparse.Namespace) -> tuple[list[Ours], list[Contestant]]:
    """Ours and the peers that are asked for."""
    settings: dict[str, object] = {
        "model.store": options.store,
        "model.family": options.family,
        "cache.enabled": "false",
        **dict(pair.split("=", 1) for pair in options.settings),
    }
    ours = [Ours(HAPROXY, False, settings), Ours(EDGE, True, settings)]
    peers = list(PEERS) if options.peers else []

    def wanted(name: str) -> bool:
        return not options.only or any(part.lower() in name.lower() for part in options.only)

    return [one for one in ours if wanted(one.name)], [one for one in peers if wanted(one.name)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a target was missed."""
    options = options_of(arguments)
    plan = plan_of(options)
    options.folder.mkdir(parents=True, exist_ok=True)
    questions = options.texts or options.folder / "questions.csv"
    if options.family == FAMILY:
        compile_demo_family(options.store, options.folder / "questions.csv")
    weights = (
        workloads.popularity(options.popularity)
        if options.popularity
        else workloads.zipf(plan.zipf_exponent, plan.cache_texts)
    )
    ours, peers = contestants_of(options)
    model = measuring.Model(options.store, options.family, options.point)
    result = Benchmark(plan, model, questions, options.folder, ours).run(peers, weights)
    out = options.folder / "bench.json"
    verdicts = judge(result)
    written = {**asdict(result), "verdicts": [{**asdict(one), "met": one.met} for one in verdicts]}
    write_atomic(out, json.dumps(written, indent=1, default=str).encode())
    draw(result, options.folder / "bench.png")
    console.print(show(result))
    for verdict in verdicts:
        console.print(str(verdict), style="red" if verdict.met is False else None)
    console.print(f"{result.wall_s / 60:.1f} minutes; all figures: {out}, picture: {options.folder / 'bench.png'}")
    return 1 if missed(verdicts) else 0


if __name__ == "__main__":
    raise SystemExit(main())
