"""The CPU at hand, and one-thread CPU time of ONNX graphs."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compile.text import Encoded, feed, served_batches
from models.manifest import CostModel, LatencyCell, TargetCpu

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_NS_PER_S, _MS_PER_S = 1e9, 1e3
_KEPT_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
# A first run is slower by a warm-up that long runs do not notice.
_LONG_SECONDS = 0.1
_NARROW_ROWS = (4, 8)
CELL_ROWS = (1, 4, 16)
CELL_TOKENS = (8, 16, 32, 64, 128, 256, 512)


def this_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> TargetCpu:
    """The CPU that files are made for. Without 8-bit dot products, weights must keep to 7 bits (`reduce_range`)."""
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    vnni = bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"})
    arm = "asimddp" in flags or platform.machine() in ("aarch64", "arm64")
    return TargetCpu(
        model=fields.get("model name", platform.processor() or platform.machine()),
        vnni=vnni,
        reduce_range=not (vnni or arm),
        flags=tuple(flag for flag in _KEPT_FLAGS if flag in flags),
    )


def served_cpu_seconds(
    sessions: Mapping[str, InferenceSession], encoded: Encoded, pad: int, rows_per_batch: int, repeats: int
) -> dict[str, float]:
    """CPU-seconds per 1,000 texts of every graph, one thread, batches as a busy server forms them.

    The graphs take turns within each repeat, so that a disturbance hits all of them; the least of the repeats counts,
    since a disturbance only ever adds.
    """
    batches = [feed(encoded, rows, pad) for rows in served_batches(encoded, rows_per_batch)]
    spent: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        for batch in batches[:: max(1, len(batches) // 4)]:
            session.run(["logits"], batch)
    for _ in range(repeats):
        for name, session in sessions.items():
            began = time.thread_time()
            for batch in batches:
                session.run(["logits"], batch)
            spent[name].append((time.thread_time() - began) / len(encoded) * 1000)
    return {name: min(values) for name, values in spent.items()}


def cheapest_width_cpu_seconds(
    sessions: Mapping[str, InferenceSession], encoded: Encoded, pad: int, most_rows: int, repeats: int
) -> dict[str, float]:
    """`served_cpu_seconds` of every graph at the batch width that suits it, of 4, 8 and `most_rows` rows.

    A server that batches by cost takes the width that suits the form: narrow where padding costs much.
    """
    widths = sorted({*_NARROW_ROWS, most_rows})
    by_rows = [served_cpu_seconds(sessions, encoded, pad, rows, repeats) for rows in widths]
    return {name: min(costs[name] for costs in by_rows) for name in sessions}


def latency_cells(
    session: InferenceSession, names: Sequence[str], vocabulary: int, max_tokens: int, repeats: int
) -> tuple[LatencyCell, ...]:
    """CPU milliseconds per text of one graph over batch shapes up to `max_tokens` tokens, no padding in them."""
    rng = np.random.default_rng(0)
    cells = []
    for tokens in [t for t in CELL_TOKENS if t <= max_tokens]:
        for rows in CELL_ROWS:
            ids = rng.integers(0, vocabulary, (rows, tokens), dtype=np.int64)
            ones: NDArray[np.int64] = np.ones_like(ids)
            given = {"input_ids": ids, "attention_mask": ones, "token_type_ids": ones - 1}
            arrays = {name: given[name] for name in names}
            least = _timed(session, arrays)
            if least < _LONG_SECONDS:
                least = min(_timed(session, arrays) for _ in range(repeats))
            cells.append(LatencyCell(rows=rows, tokens=tokens, cpu_ms_per_text=least * _MS_PER_S / rows))
    return tuple(cells)


def padding_share(session: InferenceSession, names: Sequence[str], vocabulary: int, repeats: int) -> float:
    """What a padded token costs, as a share of a real one (0 to 1), at 16 rows of 16 to 32 tokens."""
    rows, short, long = 16, 16, 32
    ids = np.random.default_rng(0).integers(0, vocabulary, (rows, long), dtype=np.int64)
    mask: NDArray[np.int64] = np.ones_like(ids)

    def spent(tokens: int, real: int) -> float:
        cut = mask[:, :tokens].copy()
        cut[:, real:] = 0
        given = {"input_ids": ids[:, :tokens].copy(), "attention_mask": cut, "token_type_ids": np.zeros_like(cut)}
        return _timed(session, {name: given[name] for name in names})

    shapes = ((long, long), (long, short), (short, short))
    runs = [[spent(*shape) for shape in shapes] for _ in range(repeats + 1)][1:]
    full, padded, least = (min(run[at] for run in runs) for at in range(len(shapes)))
    if full <= least:
        return 1.0
    return min(1.0, max(0.0, (padded - least) / (full - least)))


def _timed(session: InferenceSession, arrays: Mapping[str, NDArray[np.int64]]) -> float:
    began = time.thread_time_ns()
    session.run(["logits"], dict(arrays))
    return max(time.thread_time_ns() - began, 1) / _NS_PER_S


def nonnegative_least_squares(columns: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients >= 0 that bring `columns` [rows, few] closest to `wanted` [rows].

    The solution solves plain least squares on the columns it uses, so trying every set of a few columns is exact.
    """
    count = columns.shape[1]
    best, least = np.zeros(count), float(np.square(wanted).sum())
    for size in range(1, count + 1):
        for used in itertools.combinations(range(count), size):
            solved = np.linalg.lstsq(columns[:, used], wanted, rcond=None)[0]
            missed = float(np.square(columns[:, used] @ solved - wanted).sum())
            if (solved >= 0).all() and missed < least:
                best, least = np.zeros(count), missed
                best[list(used)] = solved
    return best


def fit_cost(cells: Sequence[LatencyCell]) -> CostModel:
    """Weights `fixed + linear*n + quadratic*n^2` of one text, in nanoseconds, none negative.

    Non-negative least squares on relative errors, over batches of 4 rows and more where there
    are any: the fixed cost of a call is then shared, as it is in service.
    """
    used = [cell for cell in cells if cell.rows >= 4] or list(cells)
    lengths = np.array([cell.tokens for cell in used], dtype=np.float64)
    costs = np.array([cell.cpu_ms_per_text for cell in used]) * _NS_PER_S / _MS_PER_S
    # The coefficients differ by orders of magnitude: solve in units where their columns do not.
    scale = np.array([1.0, lengths.max(), lengths.max() ** 2])
    columns = np.stack([np.ones_like(lengths), lengths, lengths**2], axis=1) / scale / costs[:, None]
    solved = nonnegative_least_squares(columns, np.ones_like(costs))
    fixed, linear, quadratic = (float(c) for c in solved / scale)
    return CostModel(fixed_ns=fixed, linear_ns=linear, quadratic_ns=quadratic)
