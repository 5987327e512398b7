"""The floor: raw ONNX Runtime and the tokenizer, no server. `python -m loadtest.floor STORE FAMILY TEXTS` prints JSON.

It runs in a process of its own so that its CPU time is nothing but its own.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import orjson
from tokenizers import Tokenizer

from loadtest.texts import read_questions
from models.store import Store


def session_of(path: Path) -> ort.InferenceSession:
    """One thread, no spinning: the cheapest way to run one session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_batches(session: ort.InferenceSession, batches: list[list[list[int]]], pad_id: int) -> None:
    """Run every batch of single texts, padded to its longest row."""
    wanted = {one.name for one in session.get_inputs()}
    for batch in batches:
        ids = np.full((len(batch), max(map(len, batch))), pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        session.run(["logits"], {name: feed[name] for name in wanted})


def measure(store: Path, family: str, point: str, texts: list[str], rows: int) -> dict[str, float]:
    """CPU-seconds per 1,000 texts: sorted by length in batches of `rows`, tokenizing included, and of tokenizing.

    Raises KeyError for an unknown point.
    """
    version = Store(store).open(family)
    manifest = version.manifest
    variant = {p.name: p.variant for p in manifest.points}[point]
    tokenizer = Tokenizer.from_file(str(version.file(manifest.tokenizer)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(manifest.max_tokens)
    session = session_of(version.file(manifest.variant(variant).model))
    run_batches(session, [[tokenizer.encode(text).ids] for text in texts[:20]], manifest.pad_id)
    started = time.process_time()
    tokens = [tokenizer.encode(text).ids for text in texts]
    tokenized = time.process_time()
    tokens.sort(key=len)
    run_batches(session, [tokens[i : i + rows] for i in range(0, len(tokens), rows)], manifest.pad_id)
    ended = time.process_time()
    per_1k = 1000 / len(texts)
    return {
        "cpu_seconds_per_1k": (ended - started) * per_1k,
        "tokenize_cpu_seconds_per_1k": (tokenized - started) * per_1k,
        "mean_tokens": sum(map(len, tokens)) / len(tokens),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("family")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--point", default="full")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--skip", type=int, default=0)
    options = parser.parse_args()
    questions = read_questions(options.texts)
    texts = [q.text for q in questions[options.skip : options.skip + options.limit]]
    print(orjson.dumps(measure(options.store, options.family, options.point, texts, options.rows)).decode())


if __name__ == "__main__":
    main()
