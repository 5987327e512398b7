"""What an answer costs from its text on: tokenizing, and every variant when a text comes alone.

`measure` times the graphs in full batches, which is what a busy server pays at least. What a server pays at most is a
text at a time, tokenized, padded and run after another model has had the CPU's caches. In between lies every load.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from compile.graph.sessions import open_session
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.export import FILE
from compile.passes.versions import VERSIONS
from compile.recipe import MeasureSpec
from compile.text import Encoded, feed, load_tokenizer

TEXTS = 64
REPEATS = 3
_NS_PER_S = 1e9

Row = tuple[str, str | None]


class Answer(Pass):
    """graphs by variant name -> CPU-seconds per 1,000 texts of tokenizing and, by variant, of texts that come alone."""

    name = "answer"
    version = VERSIONS["answer"]

    def __init__(self, spec: MeasureSpec, max_tokens: int, cpu_model: str) -> None:
        self.spec, self.max_tokens, self.cpu_model = spec, max_tokens, cpu_model

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        texts, repeats = min(TEXTS, self.spec.texts), min(REPEATS, self.spec.repeats)
        return {"texts": texts, "repeats": repeats, "max_tokens": self.max_tokens, "cpu": self.cpu_model}

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Time them, the variants in turn on every text; the least of the repeats counts."""
        config = self.config()
        sessions = {name: open_session(artifact.path / FILE) for name, artifact in inputs.items()}
        tokenizer = load_tokenizer(context.base.tokenizer, self.max_tokens)
        rows = _rows(context, config["texts"])
        typed = "token_type_ids" in context.input_names
        tokenizing: list[float] = []
        alone: dict[str, list[float]] = {name: [] for name in sessions}
        for repeat in range(config["repeats"]):
            context.progress(repeat / config["repeats"], "texts one by one")
            began = time.thread_time_ns()
            for row in rows:
                _encode(tokenizer, row)
            tokenizing.append(time.thread_time_ns() - began)
            spent = dict.fromkeys(sessions, 0)
            for row in rows:
                for name, session in sessions.items():
                    began = time.thread_time_ns()
                    encoded = _encoded(_encode(tokenizer, row), typed)
                    session.run(["logits"], feed(encoded, [0], context.pad))
                    spent[name] += time.thread_time_ns() - began
            for name, spent_ns in spent.items():
                alone[name].append(spent_ns)
        per_1k = 1000 / len(rows) / _NS_PER_S
        return {
            "tokenizing_cpu_seconds_per_1k": min(tokenizing) * per_1k,
            "alone_cpu_seconds_per_1k": {name: min(found) * per_1k for name, found in alone.items()},
            "texts": len(rows),
        }

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """A text that comes alone costs its tokenizing and more."""
        least = min(meta["alone_cpu_seconds_per_1k"].values()) - meta["tokenizing_cpu_seconds_per_1k"]
        return [Gate("CPU-seconds per 1,000 texts alone, beside tokenizing", least, 1e-9)]


def _rows(context: Context, most: int) -> Sequence[Row]:
    split = context.dataset.test
    seconds: Sequence[str | None] = split.texts_b if split.texts_b is not None else [None] * len(split.texts)
    step = max(1, -(-len(split.texts) // most))
    return list(zip(split.texts, seconds, strict=True))[::step]


def _encode(tokenizer: Tokenizer, row: Row) -> Encoding:
    return tokenizer.encode(*row)


def _encoded(encoding: Encoding, typed: bool) -> Encoded:
    return Encoded((tuple(encoding.ids),), (tuple(encoding.type_ids),) if typed else None)
