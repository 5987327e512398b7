"""Take the outliers out of activations before they are rounded to 8 bits, and put them into the weights.

A matrix product X W is the same as (X / s) (s W) for any positive scale per channel. Channels of X that reach far make
the 8-bit steps of all others coarse; a scale s = max|X|^a / max|W|^(1-a) shares the range between the two (SmoothQuant,
Xiao et al. 2023). Here `a` is chosen for every product, and the products that gain little are left alone: each scale
costs one multiplication of the activations at run time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compile.graph.sessions import open_session
from compile.text import Encoded, feed

Floats = NDArray[np.float32]
_EXPONENTS = (0.5, 0.7, 0.8, 0.9)
_MIN_GAIN = 0.25
"""Leave a product alone unless scaling takes at least this share of its rounding error away."""
_SAMPLED_ROWS = 192
_TINY = 1e-5
BLOCK = 32
"""Values of a column that share a scale in 4 bits."""


@dataclass(frozen=True)
class Smoothed:
    """One activation that got a scale: the first product it feeds, the exponent, rounding error before and after."""

    product: str
    exponent: float
    error_before: float
    error_after: float


def matmuls(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Matrix products with a constant right side, in graph order."""
    constant = {init.name for init in model.graph.initializer}
    return [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in constant]


def activations(
    model: onnx.ModelProto, names: Sequence[str], encoded: Encoded, batches: Sequence[Sequence[int]], pad: int
) -> dict[str, Floats]:
    """Values of the named tensors over some batches: float32 [tokens or rows, channels].

    Padding is among them, since it counts when a batch's 8-bit range is set.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    present = {value.name for value in (*watched.graph.output, *watched.graph.input)}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    session = open_session(watched.SerializeToString(), all_outputs=True)
    seen: dict[str, list[Floats]] = {name: [] for name in names}
    for rows in batches:
        for name, value in zip(names, session.run(list(names), feed(encoded, rows, pad)), strict=True):
            seen[name].append(value.reshape(-1, value.shape[-1]))
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def rounding_error(
    values: Floats, weights: Sequence[Floats], scale: Floats | None = None, weight_only_4bit: bool = False
) -> float:
    """Median over rows of |rounded - exact| / |exact| of the products values @ weight.

    `values` are rounded to 8 bits per tensor, each weight to 8 bits per column, after scaling where `scale` is given;
    or weights alone, to 4 bits by blocks. The median, because a few rows that reach far own the norm of the whole while
    the ordinary ones suffer.
    """
    if scale is not None:
        values = values / scale
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    step = (high - low) / 255 or 1.0
    rounded_values = values if weight_only_4bit else np.round(values / step) * step
    shares = []
    for given in weights:
        weight = given if scale is None else given * scale[:, None]
        exact = values @ weight
        rounded = _in_blocks(weight) if weight_only_4bit else _in_columns(weight)
        missed = np.square(rounded_values @ rounded - exact).sum(axis=1)
        shares.append(missed / np.maximum(np.square(exact).sum(axis=1), _TINY**2))
    return float(np.sqrt(np.median(np.mean(shares, axis=0))))


def _in_columns(weight: Floats) -> Floats:
    steps = np.abs(weight).max(axis=0, keepdims=True) / 127
    steps[steps == 0] = 1.0
    rounded: Floats = np.round(weight / steps) * steps
    return rounded


def _in_blocks(weight: Floats) -> Floats:
    """Rounded to 16 levels, -8 to 7 steps, the value of each block of a column that reaches farthest at -8."""
    rows, columns = weight.shape
    blocks = np.zeros((-(-rows // BLOCK) * BLOCK, columns), dtype=weight.dtype)
    blocks[:rows] = weight
    blocks = blocks.reshape(-1, BLOCK, columns)
    farthest = np.abs(blocks).argmax(axis=1, keepdims=True)
    steps = np.take_along_axis(blocks, farthest, axis=1) / -8
    steps[steps == 0] = 1.0
    rounded = np.clip(np.round(blocks / steps), -8, 7) * steps
    return rounded.astype(np.float32).reshape(-1, columns)[:rows]


def smooth(source: Path, target: Path, encoded: Encoded, batches: Sequence[Sequence[int]], pad: int) -> list[Smoothed]:
    """Write `source` with scales at the activations that gain from one; answers in fp32 stay the same."""
    model = onnx.load(str(source))
    stored = {init.name: init for init in model.graph.initializer}
    fed: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in matmuls(model):
        if node.op_type == "MatMul":
            fed[node.input[0]].append(node)
    values = activations(model, list(fed), encoded, batches, pad)
    done = []
    for name, nodes in fed.items():
        weights = [numpy_helper.to_array(stored[node.input[1]]) for node in nodes]
        before = rounding_error(_sample(values[name]), weights)
        after, exponent, scale = _best_scale(values[name], weights)
        if after > before * (1 - _MIN_GAIN):
            continue
        _insert(model, name, nodes, scale)
        for node, weight in zip(nodes, weights, strict=True):
            scaled = (weight * scale[:, None]).astype(np.float32)
            stored[node.input[1]].CopyFrom(numpy_helper.from_array(scaled, node.input[1]))
        done.append(Smoothed(nodes[0].name, exponent, before, after))
    del model.graph.value_info[:]
    onnx.save(model, str(target))
    return done


def _best_scale(values: Floats, weights: Sequence[Floats]) -> tuple[float, float, Floats]:
    reach = np.maximum(np.abs(values).max(axis=0), _TINY)
    weight_reach = np.maximum(np.max([np.abs(w).max(axis=1) for w in weights], axis=0), _TINY)
    sample = _sample(values)
    tried = []
    for exponent in _EXPONENTS:
        scale = reach**exponent / weight_reach ** (1 - exponent)
        scale = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
        tried.append((rounding_error(sample, weights, scale), exponent, scale))
    return min(tried, key=lambda item: item[:2])


def _sample(values: Floats) -> Floats:
    """Some ordinary rows and those that reach farthest."""
    step = max(1, len(values) // _SAMPLED_ROWS)
    far = np.abs(values).max(axis=1).argsort()[-_SAMPLED_ROWS // 4 :]
    return np.concatenate([values[::step][:_SAMPLED_ROWS], values[far]])


def _insert(model: onnx.ModelProto, name: str, nodes: Sequence[onnx.NodeProto], scale: Floats) -> None:
    scaled, factor = f"{name}_smoothed", f"{name}_smoothing"
    model.graph.initializer.append(numpy_helper.from_array((1.0 / scale).astype(np.float32), factor))
    at = min(i for i, node in enumerate(model.graph.node) if any(node is one or node == one for one in nodes))
    model.graph.node.insert(at, helper.make_node("Mul", [name, factor], [scaled], name=f"{nodes[0].name}_smooth"))
    for node in nodes:
        node.input[0] = scaled
