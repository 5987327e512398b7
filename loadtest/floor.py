"""The floor: raw ONNX Runtime and the tokenizer, no server.

`python -m loadtest.floor STORE FAMILY TEXTS` measures it whole and prints JSON; with `--slices` it then measures a
slice for each line of its standard input, which is the rows of a batch (1: one text at a time) and a count of texts.
It runs in a process of its own so that its CPU time is nothing but its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from tokenizers import Tokenizer

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Floor:
    """What answering costs without a server, tokenizing included."""

    rows: int
    """Texts in a batch that measured cheapest."""
    cpu_seconds_per_1k: float
    """Sorted by length, in batches of `rows`."""
    cpu_seconds_per_1k_by_rows: dict[int, float]
    tokenize_cpu_seconds_per_1k: float
    single_cpu_seconds_per_1k: float
    """One text at a time."""
    single_p50_ms: float
    single_p99_ms: float
    """Latency of one text at a time, nearest rank."""
    mean_tokens: float


def session_of(path: Path) -> ort.InferenceSession:
    """One thread, no spinning: the cheapest way to run one session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feed_of(batch: Sequence[Sequence[int]], pad_id: int) -> dict[str, Int64Array]:
    """Inputs of a batch of single texts, padded to its longest row; int64 [rows, longest]."""
    ids = np.full((len(batch), max(map(len, batch))), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def run_batch(session: ort.InferenceSession, batch: Sequence[Sequence[int]], pad_id: int) -> None:
    """Run one batch."""
    feed = feed_of(batch, pad_id)
    session.run(["logits"], {one.name: feed[one.name] for one in session.get_inputs()})


@dataclass(frozen=True)
class Slice:
    """A part of the floor, measured right beside what is compared with it: the speed of a shared machine wanders."""

    cpu_seconds_per_1k: float
    latencies_ms: list[float]
    """Of each batch, or text, tokenizing included."""


class Bare:
    """A published point without a server.

    Raises KeyError for an unknown point.
    """

    def __init__(self, store: Path, family: str, point: str, texts: Sequence[str]) -> None:
        from models.store import Store

        version = Store(store).open(family)
        manifest = version.manifest
        variant = {p.name: p.variant for p in manifest.points}[point]
        self._tokenizer = Tokenizer.from_file(str(version.file(manifest.tokenizer)))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(manifest.max_tokens)
        self._session = session_of(version.file(manifest.variant(variant).model))
        self._pad_id = manifest.pad_id
        self.texts = list(texts)
        for text in self.texts[:20]:
            self._answer([text])
        self.lengths = [len(self._tokenizer.encode(text).ids) for text in self.texts]
        self._by_length = [text for _, text in sorted(zip(self.lengths, self.texts, strict=True), key=_length)]
        self._taken = 0

    def _answer(self, texts: Sequence[str]) -> None:
        run_batch(self._session, [self._tokenizer.encode(text).ids for text in texts], self._pad_id)

    def measure(self, rows: int, count: int) -> Slice:
        """About `count` texts in batches of `rows` of equal length, batches of all lengths; other ones at each call."""
        latencies_ms = []
        batches = list(self._next(rows, count))
        started = time.process_time()
        for batch in batches:
            sent = time.perf_counter()
            self._answer(batch)
            latencies_ms.append((time.perf_counter() - sent) * 1e3)
        spent = time.process_time() - started
        return Slice(spent * 1000 / sum(map(len, batches)), latencies_ms)

    def tokenize_cpu_seconds_per_1k(self) -> float:
        """Of all texts."""
        started = time.process_time()
        for text in self.texts:
            self._tokenizer.encode(text)
        return (time.process_time() - started) * 1000 / len(self.texts)

    def _next(self, rows: int, count: int) -> Iterator[list[str]]:
        """Every n-th batch of those sorted by length; a call begins one batch after the one before it."""
        starts = range(0, len(self._by_length), rows)
        wanted = max(1, min(len(starts), round(count / rows)))
        stride = len(starts) // wanted
        self._taken += 1
        for number in range(wanted):
            start = starts[(number * stride + self._taken) % len(starts)]
            yield self._by_length[start : start + rows]


def _length(pair: tuple[int, str]) -> int:
    return pair[0]


def measure(bare: Bare, rows: Sequence[int], singles: int = 300) -> Floor:
    """All texts with each batch size of `rows`, and `singles` texts one at a time."""
    single = bare.measure(1, min(singles, len(bare.texts)))
    latencies = sorted(single.latencies_ms)
    costs = {size: bare.measure(size, len(bare.texts)).cpu_seconds_per_1k for size in rows}
    best = min(costs, key=lambda size: costs[size])
    return Floor(
        rows=best,
        cpu_seconds_per_1k=costs[best],
        cpu_seconds_per_1k_by_rows=costs,
        tokenize_cpu_seconds_per_1k=bare.tokenize_cpu_seconds_per_1k(),
        single_cpu_seconds_per_1k=single.cpu_seconds_per_1k,
        single_p50_ms=latencies[ceil(0.5 * len(latencies)) - 1],
        single_p99_ms=latencies[ceil(0.99 * len(latencies)) - 1],
        mean_tokens=sum(bare.lengths) / len(bare.lengths),
    )


def main() -> None:
    """Command line."""
    from loadtest.texts import read_questions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("family")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--point", default="full")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32], help="batch sizes; the cheapest counts")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--slices", action="store_true", help="then a slice for each line `ROWS COUNT` of the input")
    options = parser.parse_args()
    texts = [one.text for one in read_questions(options.texts)[: options.limit]]
    bare = Bare(options.store, options.family, options.point, texts)
    print(json.dumps(asdict(measure(bare, options.rows))), flush=True)
    for line in sys.stdin if options.slices else ():
        rows, count = map(int, line.split())
        print(json.dumps(asdict(bare.measure(rows, count))), flush=True)


if __name__ == "__main__":
    main()
