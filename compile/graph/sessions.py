"""ONNX Runtime sessions as the server makes them, and a check in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compile.errors import Unfinished

_FRESH_SECONDS = 60
_FRESH = """
import json, sys
import numpy as np, onnxruntime as ort
path, recorded = sys.argv[1:3]
arrays = dict(np.load(recorded))
expected = arrays.pop("logits")
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
made = session.run(["logits"], arrays)[0]
foreign = sorted({"torch", "transformers", "onnx"} & set(sys.modules))
print(json.dumps({"difference": float(np.abs(made - expected).max()), "foreign": foreign}))
"""


def open_session(path: Path | bytes, threads: int = 1, all_outputs: bool = False) -> ort.InferenceSession:
    """A CPU session with `threads` intra-op threads that do not spin.

    `all_outputs` turns graph optimization off, so that tensors asked for by name stay what they are in the file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if all_outputs:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = path if isinstance(path, bytes) else str(path)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def fresh_process_difference(path: Path, inputs: Mapping[str, NDArray[np.int64]], scratch: Path) -> float:
    """Largest |difference| of logits between this process and a new one that has onnxruntime and numpy alone.

    Infinite if that process fails or finds torch, transformers or onnx loaded. Raises Unfinished if it is killed or
    takes too long, which says nothing of the file.
    """
    expected = open_session(path).run(["logits"], dict(inputs))[0]
    recorded = scratch / "recorded.npz"
    arrays: dict[str, Any] = {"logits": expected, **inputs}
    np.savez(recorded, **arrays)
    try:
        command = [sys.executable, "-I", "-c", _FRESH, str(path), str(recorded)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FRESH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Unfinished(f"the check in a fresh process took more than {_FRESH_SECONDS} s") from None
    finally:
        recorded.unlink(missing_ok=True)
    if done.returncode < 0:
        raise Unfinished(f"the check in a fresh process was killed by signal {-done.returncode}")
    if done.returncode != 0:
        return float("inf")
    answer = json.loads(done.stdout)
    return float("inf") if answer["foreign"] else float(answer["difference"])
