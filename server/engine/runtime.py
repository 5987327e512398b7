"""The port to whatever runs the graph, and its ONNX Runtime implementation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from server.engine.errors import BackendFailure
from server.engine.tokenizer import Tokens

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


class Runtime(Protocol):
    """Runs one variant. Thread-safe; uses one thread a call, so that CPU time is the caller's thread time."""

    def run(self, batch: Sequence[Tokens]) -> Float32Array:
        """Logits, shape [len(batch), labels]. Raises BackendFailure if the whole run failed."""
        ...


def pad(batch: Sequence[Tokens], pad_id: int) -> tuple[Int64Array, Int64Array, Int64Array | None]:
    """Ids, mask and type ids (None unless given), each int64 [rows, longest]."""
    longest = max(len(tokens) for tokens in batch)
    ids = np.full((len(batch), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(batch), longest), dtype=np.int64)
    types = np.zeros_like(mask) if batch[0].type_ids is not None else None
    for row, tokens in enumerate(batch):
        size = len(tokens.ids)
        ids[row, :size] = tokens.ids
        mask[row, :size] = 1
        if types is not None and tokens.type_ids is not None:
            types[row, :size] = tokens.type_ids
    return ids, mask, types


class OnnxRuntime:
    """One ONNX Runtime session with one thread and no spinning.

    Several one-thread runs in parallel cost less than one run of several threads, and `Session.run` may be called
    from many threads at once.
    """

    def __init__(self, path: Path, *, pad_id: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._takes_types = "token_type_ids" in [one.name for one in self._session.get_inputs()]
        self._pad_id = pad_id

    def run(self, batch: Sequence[Tokens]) -> Float32Array:
        """Logits, shape [len(batch), labels]. Raises BackendFailure with the runtime's own words."""
        ids, mask, types = pad(batch, self._pad_id)
        feed = {"input_ids": ids, "attention_mask": mask}
        if self._takes_types:
            feed["token_type_ids"] = np.zeros_like(ids) if types is None else types
        try:
            logits: Float32Array = self._session.run(["logits"], feed)[0]
        except Exception as error:  # ONNX Runtime raises many unrelated types
            raise BackendFailure(f"the runtime failed: {error}") from error
        return logits
