"""The model as every peer serves it: the same file and tokenizer as ours, written the plain way.

Batches are padded to their longest text in the order in which they came: no peer sorts by length.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MODEL_FILE = "JOULESERVE_BENCH_MODEL"
"""Environment variable: the JSON file that `ModelFiles.save` wrote."""
PORT = "JOULESERVE_BENCH_PORT"
"""Environment variable: the loopback port to listen on."""
MAX_ROWS = 16
WORKERS = 2


@dataclass(frozen=True)
class Encoder:
    """Sizes of the BERT that the graph was exported from."""

    vocabulary: int
    positions: int
    hidden: int
    intermediate: int
    layers: int

    @property
    def heads(self) -> int:
        """32 dimensions a head in the MiniLM models, 64 in all other BERTs."""
        return self.hidden // (32 if self.hidden == 384 else 64)


@dataclass(frozen=True)
class ModelFiles:
    """What a peer needs to serve."""

    onnx: str
    tokenizer: str
    labels: tuple[str, ...]
    pad_id: int
    max_tokens: int
    encoder: Encoder | None
    """None if the family is no BERT that was exported with its parameters' names."""

    def save(self, path: Path) -> None:
        """Write as JSON."""
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(asdict(self)))
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> ModelFiles:
        """Read what `save` wrote."""
        raw = json.loads(path.read_text())
        encoder = Encoder(**raw.pop("encoder")) if raw["encoder"] else raw.pop("encoder")
        return cls(labels=tuple(raw.pop("labels")), encoder=encoder, **raw)

    @classmethod
    def from_environment(cls) -> ModelFiles:
        """The files that this process was started for."""
        return cls.load(Path(os.environ[MODEL_FILE]))


def port_from_environment() -> int:
    """The port that this process was started for."""
    return int(os.environ[PORT])


class OnnxModel:
    """One ONNX Runtime session with one thread and no spinning, as the floor has it."""

    def __init__(self, files: ModelFiles) -> None:
        import onnxruntime as ort
        from tokenizers import Tokenizer

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(files.onnx, options, providers=["CPUExecutionProvider"])
        self._names = {one.name for one in self._session.get_inputs()}
        self._tokenizer = Tokenizer.from_file(files.tokenizer)
        self._tokenizer.enable_truncation(files.max_tokens)
        self._tokenizer.enable_padding(pad_id=files.pad_id)
        self._labels = files.labels

    def predict(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The best label of each text and its probability."""
        import numpy as np

        encoded = self._tokenizer.encode_batch(list(texts))
        feed = {
            "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
            "token_type_ids": np.array([one.type_ids for one in encoded], dtype=np.int64),
        }
        logits = self._session.run(["logits"], {name: feed[name] for name in self._names})[0]
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        best = shares.argmax(axis=1)
        return [
            {"label": self._labels[label], "score": float(row[label])} for label, row in zip(best, shares, strict=True)
        ]
