"""`python -m loadtest.runtimes`: OpenVINO against ONNX Runtime on the graphs of a published family.

Both run the same files on the same token batches with one thread in one process, in turns whose order changes from
round to round; ratios are taken within a round. It runs in the environment of the peers, which has OpenVINO:
`make runtimes`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from loadtest.floor import feed_of, session_of
from loadtest.peers.environment import PEERS_PYTHON

Run = Callable[[dict[str, npt.NDArray[np.int64]]], npt.NDArray[np.float32]]
Rows = list[list[int]]


@dataclass(frozen=True)
class Figure:
    """One graph in one way of batching: medians over the rounds."""

    family: str
    variant: str
    rows: int
    onnxruntime_cpu_seconds_per_1k: float
    openvino_cpu_seconds_per_1k: float
    ratio: float
    """OpenVINO's CPU-seconds over ONNX Runtime's, median of the rounds' ratios; below 1 is a lead of OpenVINO's."""
    ratio_range: tuple[float, float]
    agreement: float
    """Share of texts to which both give the same label."""


def onnxruntime_run(path: Path) -> Run:
    """One session of ONNX Runtime with one thread."""
    session = session_of(path)
    wanted = {one.name for one in session.get_inputs()}

    def run(feed: dict[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = session.run(["logits"], {name: feed[name] for name in wanted})[0]
        return logits

    return run


def openvino_run(path: Path) -> Run:
    """One inference request of OpenVINO with one stream of one thread, the counterpart of one session."""
    import openvino  # type: ignore[import-not-found, unused-ignore]

    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    wanted = {name for one in request.model_inputs for name in one.get_names()}

    def run(feed: dict[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        found = request.infer({name: array for name, array in feed.items() if name in wanted}, share_inputs=True)
        return np.array(found["logits"])

    return run


def batches_of(tokens: Sequence[Sequence[int]], rows: int) -> Iterator[list[int]]:
    """Indices of the texts, `rows` at a time and sorted by length if there are several."""
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index])) if rows > 1 else range(len(tokens))
    for start in range(0, len(tokens), rows):
        yield list(order[start : start + rows])


def timed(run: Run, tokens: Rows, rows: int, pad_id: int) -> tuple[float, npt.NDArray[np.int64]]:
    """CPU-seconds of the whole process (a runtime may hold threads of its own) per 1,000 texts, and the label of each
    text by number."""
    labels = np.zeros(len(tokens), dtype=np.int64)
    batches = list(batches_of(tokens, rows))
    started = time.process_time()
    for batch in batches:
        labels[batch] = run(feed_of([tokens[index] for index in batch], pad_id)).argmax(axis=1)
    return (time.process_time() - started) * 1000 / len(tokens), labels


def compare(runs: Sequence[Run], tokens: Rows, rows: int, pad_id: int, rounds: int) -> tuple[list[list[float]], float]:
    """CPU-seconds per 1,000 texts, one list of rounds a runtime, and the share of texts they agree on."""
    costs: list[list[float]] = [[] for _ in runs]
    labels: list[npt.NDArray[np.int64]] = [np.empty(0, dtype=np.int64) for _ in runs]
    for run in runs:
        timed(run, tokens[: 16 * rows], rows, pad_id)
    for number in range(rounds):
        for turn in range(len(runs)):
            index = (turn + number) % len(runs)
            cost, labels[index] = timed(runs[index], tokens, rows, pad_id)
            costs[index].append(cost)
    return costs, float((labels[0] == labels[1]).mean())


def measure(store: Path, family: str, texts: Sequence[str], rounds: int) -> Iterator[Figure]:
    """Every int8 variant of the family's current version, in sorted batches of 16 and one by one."""
    version = store / family / (store / family / "current").read_text().strip()
    manifest = json.loads((version / "manifest.json").read_text())
    tokenizer = Tokenizer.from_file(str(version / manifest["tokenizer"]["path"]))
    tokenizer.no_padding()
    tokenizer.enable_truncation(manifest["max_tokens"])
    tokens = [tokenizer.encode(text).ids for text in texts]
    for variant in [one for one in manifest["variants"] if one["precision"] == "int8"]:
        path = version / variant["model"]["path"]
        runs = [onnxruntime_run(path), openvino_run(path)]
        for rows, part in ((16, tokens), (1, tokens[: len(tokens) // 2])):
            costs, agreement = compare(runs, part, rows, manifest["pad_id"], rounds)
            ratios = [theirs / ours for ours, theirs in zip(*costs, strict=True)]
            yield Figure(
                family,
                variant["name"],
                rows,
                statistics.median(costs[0]),
                statistics.median(costs[1]),
                statistics.median(ratios),
                (min(ratios), max(ratios)),
                agreement,
            )


def measure_all(options: argparse.Namespace) -> None:
    """In the peers' environment: print one JSON line a figure."""
    for family, path in zip(options.families, options.texts, strict=True):
        texts = json.loads(Path(path).read_text())
        for figure in measure(options.store, family, texts, options.rounds):
            print(json.dumps(asdict(figure)), flush=True)


def prepare(options: argparse.Namespace) -> list[Path]:
    """In our environment, which reads every format: the texts as JSON lists."""
    from loadtest.texts import read_questions
    from models.store import write_atomic

    options.folder.mkdir(parents=True, exist_ok=True)
    files = []
    for family, path in zip(options.families, options.texts, strict=True):
        target = options.folder / f"texts-{family}.json"
        texts = [one.text for one in read_questions(Path(path))[: options.limit]]
        write_atomic(target, json.dumps(texts).encode())
        files.append(target)
    return files


def show(figures: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("family", "variant", "rows", "ONNX Runtime CPU-s / 1,000", "OpenVINO", "ratio (min - max)", "agree")
    for one in figures:
        low, high = one["ratio_range"]
        table.add_row(
            one["family"],
            one["variant"],
            str(one["rows"]),
            f"{one['onnxruntime_cpu_seconds_per_1k']:.2f}",
            f"{one['openvino_cpu_seconds_per_1k']:.2f}",
            f"{one['ratio']:.2f} ({low:.2f} - {high:.2f})",
            f"{one['agreement']:.2%}",
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--families", nargs="+", default=["support-intents"])
    parser.add_argument("--texts", nargs="+", default=["var/bench/questions.csv"], help="one file a family")
    parser.add_argument("--limit", type=int, default=1000, help="texts a family")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("var/bench"))
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure_all(options)
        return
    if not options.peers_python.exists():
        parser.error(f"{options.peers_python} is missing; `make peers` sets it up")
    command = [options.peers_python, "-m", "loadtest.runtimes", "--here", "--store", options.store]
    command += ["--rounds", str(options.rounds), "--families", *options.families, "--texts", *prepare(options)]
    from models.store import write_atomic

    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=False, timeout=3600)
    if done.returncode:
        raise SystemExit("the measurement failed; its own words are above")
    figures = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
    write_atomic(options.folder / "runtimes.json", json.dumps(figures, indent=1).encode())
    show(figures)


if __name__ == "__main__":
    main()
