"""Every point of the dial in a running server, against its manifest: `python -m loadtest.dial --family F --texts FILE`.

The server is pinned to one operating point after the other while it runs, asked every labelled text over HTTP, and
measured from outside: accuracy by the labels of the replies, CPU time of the whole process tree, dynamic joules by its
own books. The cache is off. Rounds go through the points in turn, there and back, so that a machine that slows down is
no point's fault. Exit code 1 if a point breaks a bound of its manifest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from compile.bootstrap import Flags, relative_accuracy_lower
from loadtest.client import Question, closed_loop, percentile
from loadtest.demo_tables import read_metrics
from loadtest.served import Served, serve
from loadtest.tree import read_tree
from models.manifest import Manifest, OperatingPoint
from models.store import Store, StoreError, write_atomic
from server.shaping.tuning import tune

SETTLED_S = 2.5
"""The node process settles its counters within this."""
TURN_S = 30.0
CASCADE_ACCURACY, CASCADE_COST = 0.99, 0.60
Z_ONE_SIDED_95 = 1.645


@dataclass(frozen=True)
class Pass:
    """All texts asked once of one point."""

    accuracy: float
    cpu_seconds_per_1k: float
    """Of the whole process tree."""
    joules_per_1k: float | None
    """Dynamic joules that the requests owe, None where nothing measures them."""
    idle_cpu_seconds_per_1k: float
    """What the tree spends in as much time without requests: the slower the pass, the more of it falls on each."""
    p99_ms: float
    escalated: int
    texts: int
    failed: int
    right: tuple[bool, ...]
    """Of each text, in the order of asking; one that was not answered was not answered rightly."""


@dataclass
class Measured:
    """A point's passes beside what its manifest says."""

    point: OperatingPoint
    passes: list[Pass] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Of the median pass."""
        return median(one.accuracy for one in self.passes)

    @property
    def cpu_seconds_per_1k(self) -> float:
        """Of the median pass."""
        return median(one.cpu_seconds_per_1k for one in self.passes)

    @property
    def joules_per_1k(self) -> float | None:
        """Of the median pass."""
        found = [one.joules_per_1k for one in self.passes if one.joules_per_1k is not None]
        return median(found) if found else None

    @property
    def right(self) -> Flags:
        """Which texts most of the passes answered rightly; [texts]. Passes over one text are no further texts."""
        most: Flags = np.mean([one.right for one in self.passes], axis=0) > 0.5
        return most


@dataclass(frozen=True)
class Verdict:
    """Whether a point keeps what its manifest promises; None where it promises nothing."""

    accuracy_kept: bool
    joules_kept: bool | None
    cpu_share: float
    """Of full quality's CPU-seconds, end to end."""
    relative_accuracy: float
    """Of full quality's accuracy, measured here."""
    relative_accuracy_lower: float
    """Its lower bound: paired bootstrap over the texts, one-sided 95 %."""


def judge(measured: Measured, full: Measured, uncertainty: float | None) -> Verdict:
    """Compare with the manifest. Accuracy is kept if it is not below the manifest's lower bound by more than sampling
    explains (one-sided 95 %). Joules are kept if they lie between the manifest's for full batches, tokenizing included,
    and for texts that come alone, give or take the meter's own uncertainty; without those figures nothing is said."""
    point, texts = measured.point, measured.passes[0].texts
    slack = Z_ONE_SIDED_95 * sqrt(max(0.0, point.accuracy_lower * (1 - point.accuracy_lower)) / texts)
    joules_kept = None
    bounds = joules_bounds(point)
    if measured.joules_per_1k is not None and bounds is not None and uncertainty is not None:
        least, most = bounds
        joules_kept = least * (1 - uncertainty) <= measured.joules_per_1k <= most * (1 + uncertainty)
    return Verdict(
        measured.accuracy >= point.accuracy_lower - slack,
        joules_kept,
        measured.cpu_seconds_per_1k / full.cpu_seconds_per_1k,
        measured.accuracy / full.accuracy if full.accuracy else float("nan"),
        relative_accuracy_lower(measured.right, full.right, seed=1),
    )


def joules_bounds(point: OperatingPoint) -> tuple[float, float] | None:
    """Joules of 1,000 answers in full batches and alone, tokenizing included; None where any of it is unknown."""
    least, most = point.answer_joules_per_1k, point.alone_joules_per_1k
    if least is None or most is None or point.tokenizing_cpu_seconds_per_1k is None:
        return None
    return min(least, most), max(least, most)


def labelled(path: Path, labels: Sequence[str], limit: int | None) -> list[Question]:
    """Texts with the names of their labels; a number is a place in the family's labels. Raises ValueError."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        rows = parquet.read_table(path).to_pylist()
    else:
        import csv

        with path.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    found = []
    for number, row in enumerate(rows[:limit], 1):
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str) or label is None:
            raise ValueError(f"{path}, row {number}: needs a text and a label; give columns `text` and `label`")
        name = labels[int(label)] if str(label).isdigit() and int(label) < len(labels) else str(label)
        if name not in labels:
            raise ValueError(f"{path}, row {number}: label {label!r} is none of the family's {len(labels)}")
        found.append(Question(text, label=name))
    if not found:
        raise ValueError(f"{path}: holds no texts")
    return found


def turn_to(served: Served, run_dir: Path, point: str) -> None:
    """Pin the dial and wait until replies say so. Raises RuntimeError."""
    tune(run_dir / "tuning.json", {"shaping.policy": "pin", "shaping.pin_point": point})
    deadline = time.monotonic() + TURN_S
    while time.monotonic() < deadline:
        reply = httpx.post(f"{served.url}/predict", json={"inputs": f"turn {time.monotonic()}"}, timeout=30)
        if reply.headers.get("x-jouleserve-point") == point:
            return
        time.sleep(0.2)
    raise RuntimeError(f"the dial did not reach '{point}' within {TURN_S:g} s; the end of the log:\n{served.tail()}")


def run_pass(served: Served, questions: Sequence[Question], clients: int, point: str) -> Pass:
    """Ask everything once. Raises RuntimeError if another point answered."""
    began_s, cpu = time.monotonic(), read_tree(served.process.pid)
    time.sleep(SETTLED_S)
    idle_share = read_tree(served.process.pid).since(cpu) / (time.monotonic() - began_s)
    before, cpu = read_metrics(served.metrics_url), read_tree(served.process.pid)
    began_s = time.monotonic()
    run = asyncio.run(closed_loop(f"{served.url}/predict", iter(questions), clients))
    spent_s, took_s = read_tree(served.process.pid).since(cpu), time.monotonic() - began_s
    time.sleep(SETTLED_S)
    after = read_metrics(served.metrics_url)
    answered = run.answered
    if not answered:
        raise RuntimeError(f"nothing was answered; the end of the log:\n{served.tail()}")
    if others := {reply.point for reply in answered} - {point}:
        raise RuntimeError(f"pinned to '{point}', answered by {', '.join(sorted(others))}")

    def grown(name: str) -> float:
        return after.total(name) - before.total(name)

    joules = grown("jouleserve_attributed_joules_total")
    right = {id(reply.question) for reply in answered if reply.correct}
    return Pass(
        accuracy=sum(reply.correct is True for reply in answered) / len(answered),
        cpu_seconds_per_1k=1000 * spent_s / len(answered),
        joules_per_1k=1000 * joules / len(answered) if joules > 0 else None,
        idle_cpu_seconds_per_1k=1000 * idle_share * took_s / len(answered),
        p99_ms=1000 * percentile([reply.latency_s for reply in answered], 0.99),
        escalated=round(grown("jouleserve_escalations_total")),
        texts=len(answered),
        failed=len(run.replies) - len(answered),
        right=tuple(id(question) in right for question in questions),
    )


def measure(options: argparse.Namespace, manifest: Manifest, questions: Sequence[Question]) -> list[Measured]:
    """Every point, `rounds` times."""
    named = options.points or [point.name for point in manifest.points]
    found = [Measured(point) for point in manifest.points if point is manifest.points[0] or point.name in named]
    settings = {
        "model.store": options.store,
        "model.family": options.family,
        "shaping.policy": "off",
        "shaping.floors.eco": 0,
        "shaping.floors.standard": 0,
        "shaping.swing_s": 0,
        "cache.enabled": "false",
        "batching.max_queue_requests": 10 * options.clients,
    }
    with tempfile.TemporaryDirectory(prefix="dial-") as name:
        folder = Path(name)
        with serve(folder, settings, edge=options.edge) as served:
            for number in range(options.rounds):
                for one in found if number % 2 == 0 else reversed(found):
                    turn_to(served, folder / "run", one.point.name)
                    one.passes.append(run_pass(served, questions, options.clients, one.point.name))
    return found


def uncertainty_of(manifest: Manifest, point: OperatingPoint) -> float | None:
    """Relative, of the manifest's joules of the point."""
    return manifest.variant(point.variant).evidence.energy_relative_uncertainty


def table(manifest: Manifest, found: Sequence[Measured]) -> Table:
    """A row a point."""
    full = found[0]
    headings = (
        "point",
        "accuracy",
        "manifest (lower)",
        "of full (lower)",
        "CPU-s/1k",
        "idling",
        "of full",
        "manifest",
        "J/1k",
    )
    title = f"{manifest.family}: {full.passes[0].texts} texts, {len(full.passes)} rounds over HTTP"
    shown = Table(*headings, "manifest", "p99", title=title)
    for one in found:
        point = one.point
        verdict = judge(one, full, uncertainty_of(manifest, point))
        promised = point.answer_cpu_seconds_per_1k / full.point.answer_cpu_seconds_per_1k
        shown.add_row(
            point.name,
            f"{one.accuracy:.2%}{'' if verdict.accuracy_kept else ' !'}",
            f"{point.accuracy:.2%} ({point.accuracy_lower:.2%})",
            f"{verdict.relative_accuracy:.2%} ({verdict.relative_accuracy_lower:.2%})",
            f"{one.cpu_seconds_per_1k:.2f}",
            f"{median(p.idle_cpu_seconds_per_1k for p in one.passes):.2f}",
            f"{verdict.cpu_share:.1%}",
            f"{promised:.0%}",
            _joules(one.joules_per_1k) + (" !" if verdict.joules_kept is False else ""),
            _span(point),
            f"{median(p.p99_ms for p in one.passes):.0f} ms",
        )
    return shown


def _joules(joules: float | None) -> str:
    return "-" if joules is None else f"{joules:.2f}"


def _span(point: OperatingPoint) -> str:
    bounds = joules_bounds(point)
    return _joules(point.answer_joules_per_1k) if bounds is None else f"{bounds[0]:.2f} - {bounds[1]:.2f}"


def cascade_line(manifest: Manifest, found: Sequence[Measured]) -> str:
    """The cheapest cascade that keeps 99 % of full quality's accuracy, and whether it costs at most 60 %; and the
    cheapest that keeps it by the lower bound too."""
    full = found[0]
    judged = [
        (judge(one, full, uncertainty_of(manifest, one.point)), one.point.name)
        for one in found
        if one.point.cascade is not None
    ]
    if not judged:
        return "the family has no cascade"
    kept = [pair for pair in judged if pair[0].relative_accuracy >= CASCADE_ACCURACY]
    if not kept:
        return "no cascade keeps 99 % of full quality's accuracy: target missed"
    sure = [pair for pair in kept if pair[0].relative_accuracy_lower >= CASCADE_ACCURACY]
    best = _cheapest(kept)
    met = "met" if best[0].cpu_share <= CASCADE_COST else "missed"
    by_bound = f"{_said(_cheapest(sure))} keeps it by its lower bound" if sure else "none keeps it by its lower bound"
    return f"{_said(best)}, end to end; at most {CASCADE_COST:.0%} is asked: {met}; {by_bound}"


def _cheapest(pairs: Sequence[tuple[Verdict, str]]) -> tuple[Verdict, str]:
    return min(pairs, key=lambda pair: pair[0].cpu_share)


def _said(pair: tuple[Verdict, str]) -> str:
    verdict, name = pair
    return (
        f"{name}: {verdict.relative_accuracy:.2%} of full quality's accuracy (at least"
        f" {verdict.relative_accuracy_lower:.2%}) at {verdict.cpu_share:.1%} of its CPU-seconds"
    )


def to_dict(manifest: Manifest, found: Sequence[Measured], command: str) -> dict[str, Any]:
    """JSON-serializable; `command` made it."""
    points = []
    for one in found:
        verdict = judge(one, found[0], uncertainty_of(manifest, one.point))
        manifest_says = one.point.model_dump(exclude={"cascade", "variant"})
        passes = [{name: value for name, value in asdict(single).items() if name != "right"} for single in one.passes]
        points.append({"manifest": manifest_says, "passes": passes, "verdict": asdict(verdict)})
    cascade = cascade_line(manifest, found)
    return {"command": command, "family": manifest.family, "points": points, "cascade": cascade}


def command_of(options: argparse.Namespace) -> str:
    """The command line without the machine's own folders."""
    words = ["python -m loadtest.dial", f"--family {options.family}", f"--texts {options.texts.name}"]
    words += [f"--clients {options.clients}", f"--rounds {options.rounds}"]
    words += ["--edge"] * options.edge
    return " ".join(words)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--family", required=True)
    parser.add_argument("--texts", type=Path, required=True, help=".parquet or .csv with columns text and label")
    parser.add_argument("--limit", type=int, help="only the first texts")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", nargs="*", help="only these, and full quality")
    parser.add_argument("--edge", action="store_true", help="one process, without Ray")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    options = parser.parse_args()
    options.store = options.store.resolve()
    try:
        manifest = Store(options.store).open(options.family).manifest
        questions = labelled(options.texts, manifest.labels, options.limit)
    except (OSError, ValueError, StoreError) as error:
        parser.error(str(error))
    found = measure(options, manifest, questions)
    console = Console(width=140)
    console.print(table(manifest, found))
    console.print(cascade_line(manifest, found), highlight=False)
    if options.out is not None:
        write_atomic(options.out, json.dumps(to_dict(manifest, found, command_of(options)), indent=1).encode() + b"\n")
        console.print(f"written: {options.out}")
    verdicts = [judge(one, found[0], uncertainty_of(manifest, one.point)) for one in found]
    failed = sum(single.failed for one in found for single in one.passes)
    if failed or not all(verdict.accuracy_kept and verdict.joules_kept is not False for verdict in verdicts):
        raise SystemExit(f"out of bounds (marked !) or failed requests ({failed})")


if __name__ == "__main__":
    main()
