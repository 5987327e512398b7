"""The floor: raw ONNX Runtime and the tokenizer, no server. `python -m loadtest.floor STORE FAMILY TEXTS` prints JSON.

It runs in a process of its own so that its CPU time is nothing but its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
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


def measure(store: Path, family: str, point: str, texts: list[str], rows: Sequence[int], singles: int = 300) -> Floor:
    """Measure with each batch size of `rows`, and the first `singles` texts one at a time.

    Raises KeyError for an unknown point.
    """
    from models.store import Store

    version = Store(store).open(family)
    manifest = version.manifest
    variant = {p.name: p.variant for p in manifest.points}[point]
    tokenizer = Tokenizer.from_file(str(version.file(manifest.tokenizer)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(manifest.max_tokens)
    session = session_of(version.file(manifest.variant(variant).model))
    for text in texts[:20]:
        run_batch(session, [tokenizer.encode(text).ids], manifest.pad_id)
    started = time.process_time()
    tokens = [tokenizer.encode(text).ids for text in texts]
    tokenizing = (time.process_time() - started) * 1000 / len(texts)
    single_cpu, latencies = _singles(session, tokenizer, texts[:singles], manifest.pad_id)
    tokens.sort(key=len)
    costs = {size: tokenizing + _batched(session, tokens, size, manifest.pad_id) for size in rows}
    best = min(costs, key=lambda size: costs[size])
    return Floor(
        rows=best,
        cpu_seconds_per_1k=costs[best],
        cpu_seconds_per_1k_by_rows=costs,
        tokenize_cpu_seconds_per_1k=tokenizing,
        single_cpu_seconds_per_1k=single_cpu,
        single_p50_ms=latencies[ceil(0.5 * len(latencies)) - 1],
        single_p99_ms=latencies[ceil(0.99 * len(latencies)) - 1],
        mean_tokens=sum(map(len, tokens)) / len(tokens),
    )


def _batched(session: ort.InferenceSession, tokens: Sequence[Sequence[int]], rows: int, pad_id: int) -> float:
    started = time.process_time()
    for start in range(0, len(tokens), rows):
        run_batch(session, tokens[start : start + rows], pad_id)
    return (time.process_time() - started) * 1000 / len(tokens)


def _singles(
    session: ort.InferenceSession, tokenizer: Tokenizer, texts: Sequence[str], pad_id: int
) -> tuple[float, list[float]]:
    latencies_ms = []
    started = time.process_time()
    for text in texts:
        sent = time.perf_counter()
        run_batch(session, [tokenizer.encode(text).ids], pad_id)
        latencies_ms.append((time.perf_counter() - sent) * 1e3)
    return (time.process_time() - started) * 1000 / len(texts), sorted(latencies_ms)


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
    options = parser.parse_args()
    texts = [one.text for one in read_questions(options.texts)[: options.limit]]
    print(json.dumps(asdict(measure(options.store, options.family, options.point, texts, options.rows))))


if __name__ == "__main__":
    main()
